from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import pytest

import pyro_vae.testing.__main__ as selftest
from pyro_vae.testing import BrokenBound, check_elbo_bounds
from tests.children import ROOT

SUITE = """
def test_sound(elbo_checks):
    from examples.plain_pyro import guide, model
    import torch
    rows = torch.linspace(-3, 3, 9)
    assert elbo_checks(model, guide, rows).laws["posterior"] == "held"
    assert elbo_checks(model, guide, rows, num_samples=100).false_alarms == 1e-3
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What pytest says of the suite above and of the example, in one process."""
    suite = tmp_path_factory.mktemp("suite") / "test_suite.py"
    suite.write_text(SUITE)
    files = [str(suite), "examples/faulty_vae.py"]
    command = [sys.executable, "-m", "pytest", "-p", "pyro_vae.testing.plugin", *files, "-n", "0", "-rfP"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = ["--elbo-samples", "240", "--elbo-seed", "3"]
    env = {**os.environ, "PYTHONPATH": path, "FAULTY": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_the_example_fails_with_a_sentence_that_says_what_to_change(output):
    assert "law 'independence' (changing one datum moves no other datum's log w) is broken at site 'z'" in output
    assert re.search(r"changing the datum of row 0 moves the term of row \d+ by [\d.]+ nats", output)
    assert "batch statistics (call .eval(), or normalize within a datum)" in output
    assert "Traceback" not in output
    assert "exception" not in output
    assert "def test_the_elbo" not in output  # no line of code stands between the user and the sentence


def test_options_are_taken_and_what_was_checked_is_shown(output):
    assert "on 243 simulated pairs" in output  # whole batches of 9
    assert "on 108 simulated pairs" in output
    assert "exact= was not given" in output


def test_too_few_samples_are_refused_before_any_test_runs():
    command = [sys.executable, "-m", "pytest", "-p", "pyro_vae.testing.plugin", "--elbo-samples", "10", "-n", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "examples"], capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert done.returncode == 4
    assert done.stderr.strip() == "ERROR: --elbo-samples: expected at least 100, got 10; pass a larger number."


def test_the_mended_example_passes(monkeypatch):
    example = importlib.import_module("examples.faulty_vae")
    monkeypatch.setattr(example, "FAULTY", False)
    example.test_the_elbo_is_a_bound(check_elbo_bounds)


def test_the_docs_show_what_the_example_says():
    """Sentence by sentence, but for the figures, which another torch may draw otherwise."""
    example = importlib.import_module("examples.faulty_vae")
    with pytest.raises(BrokenBound) as caught:
        example.test_the_elbo_is_a_bound(check_elbo_bounds)
    docs, said = ((ROOT / "docs" / "testing.md").read_text(encoding="utf-8"), str(caught.value))
    docs, said = (re.sub(r"\d[\d.]*\d|\d", "#", " ".join(text.split())) for text in (docs, said))
    assert said in docs


def test_nothing_heavy_is_imported_before_a_test_asks():
    code = "import sys, pyro_vae.testing.plugin; assert not {'torch', 'pyro', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_projects_own_run_does_not_collect_the_example():
    assert not (ROOT / "examples" / "faulty_vae.py").name.startswith("test_")
    assert 'testpaths = ["tests"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_selftest_catches_a_fault_of_each_law(capsys, monkeypatch):
    monkeypatch.setattr(selftest, "_figures", lambda samples, seed: 0)  # see test_reference.py
    assert selftest.main(["--samples", "300"]) == 0
    out = capsys.readouterr().out
    assert "10 of 10 as expected" in out
    assert out.count("is broken at") == 9


def test_selftest_says_when_the_checks_see_nothing(capsys, monkeypatch):
    monkeypatch.setattr(selftest, "_figures", lambda samples, seed: 0)
    monkeypatch.setattr("pyro_vae.testing.selftest.faults.check_elbo_bounds", lambda *_, **__: None)
    assert selftest.main([]) == 1
    out = capsys.readouterr().out
    assert "1 of 10 as expected" in out
    assert out.count("FAIL") == 9


def test_selftest_refuses_too_few_samples(capsys):
    assert selftest.main(["--samples", "10"]) == 2
    assert "expected at least 100, got 10" in capsys.readouterr().err
