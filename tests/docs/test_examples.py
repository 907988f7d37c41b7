from __future__ import annotations

import re
import runpy
import sys

import pytest

from pyro_vae import train
from tests.children import ROOT


def _run(monkeypatch, capsys, name, *words):
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return capsys.readouterr().out


def test_plain_pyro_reaches_the_closed_form(monkeypatch, capsys):
    out = _run(monkeypatch, capsys, "plain_pyro.py")
    exact, estimated = map(float, re.search(r"exact (\S+), estimated (\S+),", out).groups())
    assert estimated == pytest.approx(exact, abs=0.005)
    assert "weights (7, 500)" in out


def test_quickstart(monkeypatch, capsys):
    out = _run(monkeypatch, capsys, "quickstart.py", "3")
    bound, log_px = (float(re.search(rf"^{name} +(-[\d.]+),", out, re.M)[1]) for name in ("ELBO", r"log p\(x\)"))
    # Independent pixels at their means get about -27 nats; a model without images gets -64 log 2 = -44.
    assert -40 < bound < log_px < -20


def test_the_readme_names_existing_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"make ([a-z-]+)", text)) - {"in"} <= targets | {"train", "test"}


#: Options by which an example is quick, how many pictures it draws, and what it must say.
QUICK = {
    "autoencoder.py": (["--parts", "codes", "--code-epochs", "1"], 2, "autoencoder: squared error"),
    "filling.py": (["--parts", "denoising", "--epochs", "1"], 3, r"masking:0\.5"),
    "semi_supervised.py": (["--parts", "conditional", "--epochs", "1"], 2, r"log p\(x\|y\) -\d"),
}
WHOLE = {
    "autoencoder.py": (
        ["--epochs", "1", "--linear-epochs", "20", "--code-epochs", "1"],
        3,
        r"KL\(q\(z\) \|\| p\)",
    ),
    "disentangling.py": (["--epochs", "2"], 2, r"tcvae 6: .*MIG"),
    "filling.py": (
        ["--epochs", "1", "--hidden-images", "12", "--num-samples", "50", "--steps", "5"],
        7,
        r"log p\(x_H \| x_V\) -\d",
    ),
}
AGAIN = {"autoencoder.py", "filling.py"}  # read what has been trained


@pytest.mark.parametrize("name", QUICK)
def test_a_part_of_an_example_prints_and_draws(name, monkeypatch, capsys, tmp_path):
    words, pictures, sentence = QUICK[name]
    out = _run(monkeypatch, capsys, name, *words, "--out", str(tmp_path))
    assert re.search(sentence, out)
    assert len([*tmp_path.glob("*.png")]) == pictures


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_an_example_prints_and_draws(name, monkeypatch, capsys, tmp_path):
    words, pictures, sentence = WHOLE[name]
    out = _run(monkeypatch, capsys, name, *words, "--out", str(tmp_path))
    assert re.search(sentence, out)
    assert len([*tmp_path.glob("*.png")]) == pictures
    if name in AGAIN:
        trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
        assert _run(monkeypatch, capsys, name, *words, "--out", str(tmp_path)) == out
        assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == trained


@pytest.mark.slow
def test_trust_log_px(monkeypatch, capsys, tmp_path):
    out = _run(monkeypatch, capsys, "trust_log_px.py", str(tmp_path), "--epochs", "2", "--steps", "10", "--most", "30")
    assert len(re.findall(r"^(?:prior|guide|refined guide) +K = +(?:10|30):", out, re.M)) == 6
    assert len([*tmp_path.glob("*.png")]) == 2


@pytest.mark.slow
def test_the_picture_of_the_readme(monkeypatch, capsys, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    assert train.main(["--epochs", "1", "--quiet", "--device", "cpu", "--run-dir", str(run)]) == 0
    _run(monkeypatch, capsys, "mnist_grid.py", str(run), str(picture))
    assert picture.stat().st_size > 10_000


def test_each_example_is_run_somewhere():
    run = {"quickstart.py", "plain_pyro.py", "trust_log_px.py", "mnist_grid.py", *QUICK, *WHOLE}
    run |= {"faulty_vae.py"}  # by the tests of the plugin
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == run
