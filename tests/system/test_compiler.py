"""Whether a run is compiled: what was asked, what the machine can do, and what it repays."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evidence, report
from pyro_vae.data import Data, Split
from pyro_vae.inference.capture import graph as capture
from pyro_vae.system import compiler
from pyro_vae.train import main

CPU = torch.device("cpu")
SHORT = "--epochs 3 --hidden 8 --latent-dim 2 --num-samples 10 --batch-size 500".split()


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They are drawn without compiled steps, and take most of the time of a short run."""
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])


@pytest.fixture
def uncompiled(monkeypatch):
    """Capture, and run the graph without Inductor."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)


@pytest.fixture
def probe(monkeypatch):
    """The probe without its memory."""
    remembering = compiler.obstacle
    remembering.cache_clear()
    yield monkeypatch
    remembering.cache_clear()


def test_this_machine_compiles(probe):
    assert compiler.obstacle() is None


def test_no_compiler(probe):
    probe.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in compiler.obstacle()


def test_only_the_compiler_that_inductor_calls_will_do(probe, tmp_path):
    """Another one on the path would pass the probe, and the steps would not compile."""
    clang = tmp_path / ("g++" if sys.platform == "darwin" else "clang++")
    clang.write_text("#!/bin/sh\nexit 0\n")
    clang.chmod(clang.stat().st_mode | stat.S_IEXEC)
    probe.delenv("CXX", raising=False)
    probe.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in compiler.obstacle()


def test_a_compiler_that_fails(probe, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'fatal: no licence' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IEXEC)
    probe.setenv("CXX", str(broken))
    assert compiler.obstacle() == f"{broken} does not compile: fatal: no licence"


def test_no_header_of_python(probe, tmp_path):
    probe.setattr(compiler.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert compiler.obstacle().startswith(f"there is no Python.h in {tmp_path}")


def test_a_folder_that_executes_nothing(probe, tmp_path):
    """As on a disk mounted noexec: the library is there and cannot be loaded."""

    def refused(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    probe.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    probe.setattr(compiler.ctypes, "CDLL", refused)
    reason = compiler.obstacle()
    assert str(tmp_path / "cache") in reason
    assert "failed to map segment" in reason


@pytest.mark.parametrize(
    ("asked", "steps", "flops", "expected", "words"),
    [
        (False, 10**9, 1e12, False, "as asked"),
        (True, 1, 1.0, True, "as asked"),
        (None, 1000, 1e8, False, "1,000 of this size do not repay it"),
        (None, 60_000, 3e8, True, "60,000 of this size repay it"),
    ],
)
def test_choice(asked, steps, flops, expected, words):
    chosen, said = compiler.should_compile(asked, steps, flops, CPU)
    assert chosen is expected
    assert words in said


def test_a_long_run_where_nothing_compiles_goes_on_eagerly(probe):
    probe.setattr(compiler, "obstacle", lambda: "there is no C++ compiler")
    assert compiler.should_compile(None, 10**6, 1e9, CPU) == (False, "steps not compiled: there is no C++ compiler")
    with pytest.raises(ValueError, match="compile: this machine cannot compile steps, since there is no C"):
        compiler.should_compile(True, 10**6, 1e9, CPU)


@pytest.mark.usefixtures("uncompiled")
def test_a_compiled_run_is_the_eager_one_and_resumes_exactly(tmp_path, capsys):
    """The same noise: the figures agree to rounding; resumed, bit for bit."""
    runs = {name: tmp_path / name for name in ("eager", "compiled", "resumed")}
    assert main([*SHORT, "--no-compile", "--quiet", "--run-dir", str(runs["eager"])]) == 0
    assert main([*SHORT, "--compile", "--run-dir", str(runs["compiled"])]) == 0
    assert "steps compiled, as asked" in capsys.readouterr().out
    assert main([*SHORT, "--epochs", "1", "--compile", "--quiet", "--run-dir", str(runs["resumed"])]) == 0
    assert main(["--resume", str(runs["resumed"]), "--epochs", "3"]) == 0
    assert "steps compiled, as before" in capsys.readouterr().out
    summaries = {name: json.loads((run / "summary.json").read_text()) for name, run in runs.items()}
    assert {name: s["compiled"] for name, s in summaries.items()} == {"eager": False, "compiled": True, "resumed": True}
    weights = [
        torch.load(runs[n] / "checkpoint.pt", weights_only=True)["training"]["model"] for n in ("resumed", "compiled")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    tests = {name: s["test"] for name, s in summaries.items()}
    assert tests["resumed"] == tests["compiled"]
    assert tests["compiled"]["elbo"]["value"] == pytest.approx(tests["eager"]["elbo"]["value"], abs=1e-3)
    assert json.loads((runs["compiled"] / "config.json").read_text())["train"]["compile"] is True


@pytest.mark.usefixtures("uncompiled")
def test_no_compile_holds_for_the_evaluation_too(tmp_path, monkeypatch):
    asked = []
    sampling = evidence.importance_sampling

    def watched(*args, **kwargs):
        asked.append(bool(kwargs["compile"]))
        return sampling(*args, **kwargs)

    monkeypatch.setattr(compiler, "worth_compiling", lambda flops, device: True)
    monkeypatch.setattr(evidence, "importance_sampling", watched)
    words = [*SHORT, "--epochs", "1", "--num-samples", "5", "--quiet", "--run-dir"]
    assert main([*words, str(tmp_path / "free")]) == 0
    assert set(asked) == {True}
    asked.clear()
    assert main([*words, str(tmp_path / "not"), "--no-compile"]) == 0
    assert set(asked) == {False}


def test_steps_that_are_not_compiled_cannot_be_checked(tmp_path, capsys):
    words = [*SHORT, "--no-compile", "--check-every", "10", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 2
    assert "check_every: 10 needs compiled training steps" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "run")


def test_asked_for_and_impossible(tmp_path, capsys, probe):
    probe.setattr(compiler, "obstacle", lambda: "there is no C++ compiler")
    assert main([*SHORT, "--compile", "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not os.path.exists(tmp_path / "run")


@pytest.mark.usefixtures("uncompiled")
def test_fit_compiles_in_python():
    """A batch that is not whole is captured too; the history says that steps were compiled."""
    x = torch.rand(50, 4).round()
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = pv.VAE((4,), 2, (5,))
        history = pv.fit(vae, Data("x", Split(x)), epochs=3, batch_size=16, compile=compile, progress=False)
        assert history.compiled is compile
        found.append(history["train_elbo"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_schedules_reach_a_compiled_step():
    """beta and the learning rate of each step, and a capacity that grows."""
    x = torch.rand(60, 4).round()
    options = {"beta": pv.schedules.linear(0.0, 2.0, steps=8), "lr_schedule": "cosine", "lr": 0.05}
    for elbo in ("mean-field", pv.inference.Capacity(pv.elbo("mean-field"), 4.0, steps=6)):
        extra = options if elbo == "mean-field" else {"lr": 0.05}
        found = []
        for compile in (False, True):
            torch.manual_seed(0)
            vae = pv.VAE((4,), 2, (5,))
            if not isinstance(elbo, str):
                elbo.taken.zero_()
            history = pv.fit(vae, x, elbo=elbo, epochs=4, batch_size=20, compile=compile, progress=False, **extra)
            found.append(history["objective"])
        assert found[0] == pytest.approx(found[1], rel=1e-4)
        assert len({round(v, 3) for v in found[0]}) == 4


@pytest.mark.slow
def test_bfloat16_trains_to_the_same_elbo(tmp_path):
    """After equal steps from one seed the test ELBO differs by less than its standard error over data."""
    found = {}
    for precision in ("float32", "bf16"):
        run = tmp_path / precision
        flags = ["--epochs", "15", "--precision", precision, "--num-samples", "10", "--quiet", "--run-dir", str(run)]
        assert main(flags) == 0
        found[precision] = json.loads((run / "summary.json").read_text())["test"]["elbo"]
    ours, theirs = found["bf16"], found["float32"]
    assert ours["value"] != theirs["value"]
    assert abs(ours["value"] - theirs["value"]) < theirs["std_error"]
