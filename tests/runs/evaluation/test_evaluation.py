"""``python -m pyro_vae.evaluate``: what it estimates, writes, compares and refuses."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train
from pyro_vae.runs.evaluation import estimators

TRAIN = ["--epochs", "3", "--latent-dim", "2", "--hidden", "16", "--num-samples", "20", "--quiet", "--run-dir"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs on the same digits, and one whose likelihood is a density."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_pictures", lambda *args: [])  # training's own, which take most of the time
        assert train.main([*TRAIN, str(folder / "one")]) == 0
        assert train.main([*TRAIN, str(folder / "two"), "--seed", "1"]) == 0
        assert train.main([*TRAIN, str(folder / "grey"), "--likelihood", "normal"]) == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def summary(run):
    return json.loads((run / "summary.json").read_text())


def call(*words):
    return evaluate.main([str(word) for word in words])


def read(file):
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(file, group="evidence") as found:
        return found.load()


SMALL = ["--num-data", 12, "--num-chains", 4, "--num-steps", 30, "--refine-steps", 20]
DRAWN = [*SMALL, "--num-samples", 200]


@pytest.mark.parametrize("estimator", [name for name, row in estimators.ESTIMATORS.items() if not row.simulates])
@pytest.mark.thin(2)
def test_each_estimator_of_a_part_of_the_test_set(runs, capsys, estimator):
    """They agree on log p(x); the main figures of the run do not change."""
    before = summary(runs / "one")
    assert (
        call(runs / "one", "--estimator", estimator, *(SMALL if estimator == "annealed" else DRAWN), "--device", "cpu")
        == 0
    )
    out = capsys.readouterr().out
    assert f"{estimator}-12: 12 images" in out
    found = summary(runs / "one")
    assert found["test"] == before["test"]
    figures = found["evidence"][f"{estimator}-12"]
    assert figures["num_data"] == 12
    exact = pv.evidence.importance_sampling(*pair(runs / "one"), images(runs / "one", 12), num_samples=20_000, seed=5)
    # With two latents and a guide hardly trained every estimator is within a tenth of a nat.
    assert figures["log_px"]["value"] == pytest.approx(float(exact.log_px.mean()), abs=0.1)
    if estimator == "annealed":  # too few chains for a k
        assert figures["log_px"]["pareto_k_threshold"] is None
        assert "for every image the standard deviation of log w over chains is at most 1 nat" in out
    if estimator == "smoothed":
        change = figures["log_px"]["smoothed"] - figures["log_px"]["value"]
        assert change != 0
        assert f"log p(x) is {figures['log_px']['smoothed']:.3f} ({change:+.3f}); that is no bound" in out
    assert figures["elbo"]["value"] <= figures["log_px"]["value"]
    assert figures["bits_per_dim"] == pytest.approx(-figures["log_px"]["value"] / (64 * math.log(2)))
    values = read(runs / "one" / f"evidence-{estimator}-12.nc")
    assert float(values["log_px"].mean()) == pytest.approx(figures["log_px"]["value"])


def pair(run):
    vae = pv.load(run).vae
    return vae.model, vae.guide


def images(run, count):
    return pv.load(run).data().test.x[:count]


def test_bidirectional_brackets_simulated_images(runs, capsys):
    assert call(runs / "one", "--estimator", "bidirectional", *SMALL, "--device", "cpu") == 0
    found = summary(runs / "one")["evidence"]["bidirectional-12"]
    assert found["num_data"] == 12
    assert abs(found["gap"]) < 4 * found["gap_std_error"] + 0.5
    assert "Simulated from the model: 12 images" in capsys.readouterr().out
    assert {p.name for p in (runs / "one").glob("evidence-*.nc")} == {
        "evidence-bidirectional-12-lower.nc",
        "evidence-bidirectional-12-upper.nc",
    }


def test_the_whole_test_set_with_a_target_for_the_error(runs, capsys):
    before = summary(runs / "one")["test"]
    assert not (runs / "one" / "worst.png").exists()
    assert call(runs / "one", "--target-se", 0.05, "--max-samples", 2000, "--device", "cpu") == 0
    test, px = summary(runs / "one")["test"], summary(runs / "one")["test"]["log_px"]
    assert px["draws"] < 2000 * test["num_data"]
    assert px["pilot_draws"] > 0
    assert "importance samples on average" in capsys.readouterr().out
    assert abs(test["elbo"]["value"] - before["elbo"]["value"]) < 4 * before["elbo"]["mc_error"] + 0.05
    assert (runs / "one" / "worst.png").stat().st_size > 5000
    values = read(runs / "one" / "evidence-importance.nc")
    good = values["std_error"].to_numpy()
    good = good[~(good != good)]  # NaN where k is too large
    assert len(good) > 100
    assert (good < 0.08).mean() > 0.95
    codes = summary(runs / "one")["checks"]["aggregate"]
    assert codes["rate"] == pytest.approx(codes["mutual_information"] + codes["marginal_kl"], abs=0.05)


def test_two_runs_are_compared(runs, capsys):
    assert call(runs / "one", runs / "two", "--num-data", 50, "--device", "cpu") == 0
    (folder,) = runs.glob("comparison-*")
    found = json.loads((folder / "comparison.json").read_text())
    assert (folder / "comparison.png").stat().st_size > 5000
    one, two = (summary(runs / n)["evidence"]["importance-50"]["log_px"]["value"] for n in ("one", "two"))
    rows = {row["name"]: row for row in found["models"]}
    worse = "one" if one < two else "two"
    assert rows[worse]["difference"] == pytest.approx(-abs(one - two))
    assert rows[worse]["lower"] < rows[worse]["difference"] < rows[worse]["upper"]
    assert sum(row["weight"] for row in found["models"]) == pytest.approx(1.0)
    assert "difference to" in capsys.readouterr().out


def test_two_models_have_draws_of_their_own(runs):
    """Equal parameters give equal draws; other parameters give other draws."""
    how = estimators.Estimation(num_samples=20)
    x = images(runs / "one", 12)
    vae = pv.load(runs / "one").vae
    first, again = (estimators.estimate(vae, x, how, 0).log_px for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    with torch.no_grad():
        vae.decoder.head.bias[0] += 1e-6  # nearly the same model: the noise alone tells
    other = estimators.estimate(vae, x, how, 0).log_px
    assert float((other - first).abs().min()) > 1e-3


def test_runs_that_cannot_be_compared_are_refused_before_anything_is_written(runs, capsys):
    before = summary(runs / "one")
    assert call(runs / "one", runs / "two", "--num-data", 1, "--device", "cpu") == 2
    assert "expected at least two test images for a comparison" in capsys.readouterr().err
    assert call(runs / "one", runs / "one", "--device", "cpu") == 2
    assert "got a run twice" in capsys.readouterr().err
    assert summary(runs / "one") == before


@pytest.mark.parametrize("words", [["--num-data", 50], []])
def test_runs_on_other_data_are_not_compared(runs, capsys, words):
    before = summary(runs / "one")
    assert call(runs / "one", runs / "grey", *words, "--device", "cpu") == 2
    assert "runs: expected the same test images" in capsys.readouterr().err
    assert summary(runs / "one") == before
    assert call(runs / "one", runs / "grey", "--no-compare", *words, "--device", "cpu", "--quiet") == 0


def test_a_density_has_bits_of_dequantized_pixels_alone(runs, capsys):
    assert "bits_per_dim" not in summary(runs / "grey")["test"]
    assert call(runs / "grey", "--dequantize", "uniform", "--device", "cpu") == 2
    assert "expected 8-bit pixels" in capsys.readouterr().err  # digits have 17 levels
    assert call(runs / "one", "--dequantize", "uniform", "--device", "cpu") == 2
    assert "expected a run whose likelihood is a density" in capsys.readouterr().err


def test_eight_bit_pixels_have_bits(tmp_path, capsys, monkeypatch):
    """Uniform noise over 40 levels has at least log2(40) bits, and the model must spend more than that."""
    import numpy as np

    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", x=rng.integers(100, 140, (200, 4, 4), dtype=np.uint8))
    words = ["--dataset", tmp_path / "noise.npz", "--likelihood", "normal", "--binarize", "none", "--latent-dim", "2"]
    longer = ["--epochs", 100, "--lr", 0.01, "--hidden", 8]
    assert train.main([str(w) for w in (*TRAIN, tmp_path / "run", *words, *longer)]) == 0
    assert call(tmp_path / "run", "--dequantize", "uniform", "--device", "cpu") == 0
    found = summary(tmp_path / "run")["evidence"]["importance-dequantized"]
    assert found["bits_per_dim"] > math.log2(40)  # the entropy of what was drawn
    assert found["bits_per_dim"] < 10
    assert found["log_px"]["value"] == pytest.approx(-(found["bits_per_dim"] - 8) * 16 * math.log(2))


def test_checks(runs, capsys):
    assert call(runs / "one", "--num-data", 40, "--checks", "gaps", "calibration", "--device", "cpu") == 0
    found = summary(runs / "one")["checks"]
    gaps = found["gaps-40"]
    assert gaps["inference"] == pytest.approx(gaps["approximation"] + gaps["amortization"])
    assert gaps["num_data"] == 40
    assert set(found["calibration-40"]["p_values"]) == {"z[0]", "z[1]", "log p(x, z)", "log q(z|x)"}
    assert {"calibration.png", "coverage.png"} <= {p.name for p in (runs / "one").iterdir()}
    assert "amortization" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "sentence"), [
    (["--num-data", 0], "num_data: expected at least 1 image, got 0"),
    (["--num-data", 10_000], "num_data: expected at most the 180 test images"),
    (["--target-se", -1], "target_se: expected a positive number of nats, got -1"),
    (["--target-se", 0.1, "--estimator", "annealed"], "target_se: needs --estimator importance"),
    (["--num-chains", 1, "--estimator", "annealed"], "num_chains: expected at least 2 chains"),
    (["--num-steps", 0, "--estimator", "annealed"], "num_steps: expected at least 1, got 0"),
    (["--num-samples", 50, "--target-se", 0.1], "num_samples: --target-se chooses the number of samples; remove one"),
    (["--num-samples", 50, "--estimator", "annealed"], "num_samples: has no effect with --estimator annealed; remove"),
    (["--num-samples", 1], "num_samples: expected at least 2 importance samples"),
    (["--estimator", "best"], "unknown estimator 'best': expected one of annealed, bidirectional"),
    (["--checks", "everything"], "unknown check 'everything': expected one of aggregate, calibration"),
])  # fmt: skip
def test_bad_input(runs, capsys, words, sentence):
    before = {p.name: p.read_bytes() for p in (runs / "one").iterdir()}
    assert call(runs / "one", *words, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert {p.name: p.read_bytes() for p in (runs / "one").iterdir()} == before
