"""Runs made before the modules moved load, resume and evaluate as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train

BEFORE = Path(__file__).parent / "before"
QUIET = ["--device", "cpu", "--threads", "1", "--quiet"]


@pytest.fixture(params=["vae", "m2"])
def resumed(request, tmp_path, monkeypatch):
    """Folders of a run resumed to three epochs, and of the same run as it was resumed then."""
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    folder = tmp_path / "run"
    shutil.copytree(BEFORE / request.param, folder)
    assert train.main(["--resume", str(folder), "--epochs", "6", *QUIET]) == 0
    return folder, BEFORE / f"{request.param}-resumed"


def figures(folder: Path) -> dict[str, float]:
    """Every number under ``test`` in ``summary.json``, by its path."""

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, part in value.items():
                yield from walk(f"{prefix}.{key}", part)
        elif isinstance(value, int | float):
            yield prefix, float(value)

    found = dict(walk("test", json.loads((folder / "summary.json").read_text())["test"]))
    return {key: value for key, value in found.items() if "seconds" not in key and "per_second" not in key}


def test_a_run_goes_on_bit_for_bit_and_evaluates_to_the_same_figures(resumed):
    """Bit for bit if this processor and torch round alike, which the fourth epoch shows; else to 1e-4."""
    folder, then = resumed
    now, before = (torch.load(f / "checkpoint.pt", weights_only=True)["training"] for f in (folder, then))
    exact = now["rows"][3]["train_elbo"] == before["rows"][3]["train_elbo"]
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-4}
    assert now["model"].keys() == before["model"].keys()
    for name, value in before["model"].items():
        torch.testing.assert_close(now["model"][name], value, **tolerance)
    found, expected = figures(folder), figures(then)
    assert found.keys() == expected.keys()
    assert len(found) > 8
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6 if exact else 1e-3), name


def test_a_run_loads_and_is_evaluated_again(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    folder = tmp_path / "run"
    shutil.copytree(BEFORE / "vae", folder)
    assert len(pv.load(folder).history) == 3
    expected = figures(folder)
    assert evaluate.main([str(folder), *QUIET]) == 0
    for name, value in figures(folder).items():
        assert value == pytest.approx(expected[name], rel=1e-3), name
