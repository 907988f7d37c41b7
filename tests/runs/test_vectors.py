"""Vectors in the place of labels, from a file: trained on, resumed, evaluated and drawn by the commands."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, report, train
from pyro_vae.data import load
from pyro_vae.evidence import importance_sampling
from pyro_vae.models.conditional import Conditional
from pyro_vae.report import pictures
from pyro_vae.report.figures import images
from tests.children import ROOT

SMALL = (
    "--model conditional --dataset bars.npz --latent-dim 2 --num-samples 20 --threads 1 --device cpu --quiet".split()
)


def bars(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images with a bright third, and its height y as (y, -y): without it nothing says which third."""
    third = np.random.default_rng(seed).integers(0, 3, num)
    x = np.repeat(np.eye(3, dtype=np.float32)[third], 2, axis=1)[..., None].repeat(5, axis=2)
    return x, np.stack([third - 0.9, 0.9 - third], 1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_conditional_model_of_vectors_by_the_commands(size, monkeypatch, capsys):
    x, y = bars(400)
    np.savez("bars.npz", x=x, y=y[:, :size])
    titles = {}

    def write(path: Path, figure) -> Path:
        titles[path.stem] = " ".join([figure.get_suptitle(), *(axes.get_title() for axes in figure.get_axes())])
        return path

    monkeypatch.setattr(pictures, "write_figure", write)
    words = ["--hidden", "32", "--lr", "0.02", "--batch-size", "40", "--run-dir", "run"]
    assert train.main([*SMALL, *words, "--epochs", "40"]) == 0
    assert {"reconstructions", "samples", "latents", "tsne"} <= set(titles)
    assert "analogies" not in titles
    assert "given the vectors y of test images" in titles["samples"]
    assert "one draw z ~ q(z|x, y)" in titles["reconstructions"]
    assert titles["latents"].strip() == "Means of q(z|x, y) of 40 test data"
    assert train.main(["--resume", "run", "--epochs", "41", "--threads", "1", "--device", "cpu", "--quiet"]) == 0
    run = pv.load("run")
    assert (run.config.model.num_classes, len(run.history)) == (size, 41)
    data = run.data()
    torch.testing.assert_close(data.test.y[:, 0], data.test.x[:, 0, ::2, 0].argmax(1) - 0.9)
    test = json.loads(Path("run/summary.json").read_text())["test"]
    # All of an image is said by y: log p(x|y) is 0 at best, while the mean of log p(x) is at most -log 3.
    assert test["log_px"]["value"] > -0.6 * math.log(3)
    assert evaluate.main(["run", "--num-samples", "200", "--threads", "1", "--device", "cpu"]) == 0
    found = importance_sampling(run.vae.model, run.vae.guide, data.test.x, data.test.y, num_samples=200, seed=1)
    after = json.loads(Path("run/summary.json").read_text())["test"]
    assert after["log_px"]["value"] == pytest.approx(float(found.log_px.mean()), abs=0.05)
    # A row of samples shows the image's own vector: the bright third is where the image has it.
    with torch.no_grad():
        figure = images.samples(run.vae, data.test, "test")
    shown = np.stack([np.asarray(image.get_array()) for image in figure.axes[0].images]).reshape(8, 9, 6, 5)
    bright = shown.reshape(8, 9, 3, 10).mean(-1).argmax(-1)
    assert (bright[:, 1:] == bright[:, :1]).mean() > 0.9


def test_the_description_of_vectors(capsys):
    x, y = bars(60)
    np.savez("bars.npz", x=x, y=y)
    assert train.main([*SMALL[:-1], "--epochs", "1", "--hidden", "4", "--run-dir", "run"]) == 0
    out = capsys.readouterr().out
    assert "vectors of 2 numbers in the place of labels" in out
    assert "vectors of 2," in out
    assert "classes" not in out


@pytest.mark.parametrize(
    ("y", "words", "sentence"),
    [
        (
            bars(60)[1],
            "--model m2",
            "labels: expected whole numbers, int64 of shape (N,), got vectors, float32 of shape (48, 2)",
        ),
        (
            bars(60)[1][:, 0],
            "--model m2",
            "labels: expected whole numbers, int64 of shape (N,), got vectors, float32 of shape (48, 1)",
        ),
        (
            np.where(np.arange(60) == 7, np.nan, bars(60)[1][:, 0]),
            "",
            "bars.npz, labels: expected finite numbers, got NaN or infinity in row 7; remove these data, or fill in values.",
        ),
        (
            bars(60)[1],
            "--labels 20",
            "labels: cannot keep 20 labels, since these data have vectors instead; remove --labels.",
        ),
        (
            bars(60)[1],
            "--num-classes 3",
            "num_classes: expected 2, the length of the label vectors of bars.npz, got 3; remove --num-classes.",
        ),
        (
            np.full((60, 2), np.nan),
            "",
            "bars.npz, labels: expected finite numbers, got NaN or infinity in row 0; remove these data",
        ),
        (
            np.ones((60, 2), dtype=int),
            "",
            "got shape (60, 2); for one-hot rows save labels.argmax(1), save vectors as floats.",
        ),
        (
            np.eye(2)[[0, 1] * 30],
            "",
            "got shape (60, 2); for one-hot rows save labels.argmax(1), save vectors as floats.",
        ),
        (bars(50)[1], "", "expected a label for each of 60 data, got 50 labels."),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(y, words, sentence, capsys):
    np.savez("bars.npz", x=bars(60)[0], y=y)
    assert train.main([*SMALL, *words.split(), "--run-dir", "run"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not os.path.exists("run")


def test_vectors_of_every_split_are_kept_as_they_are():
    x, y = bars(30)
    np.savez("bars.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:].astype(np.float16))
    data = load("bars.npz", mode="none", val_size=0)
    torch.testing.assert_close(data.train.y, torch.tensor(y[:20], dtype=torch.float32), rtol=0, atol=0)
    assert data.test.y.dtype == torch.float32
    assert data.num_classes == 2
    np.savez("bars.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:, 0])
    with pytest.raises(
        ValueError, match=r"labels: expected vectors of 2 numbers in every split, got float64 of shape \(10,\)"
    ):
        load("bars.npz")


def test_floats_of_one_column_are_vectors_unless_they_are_whole():
    x, y = bars(30)
    for one in (y[:, :1], y[:, 0]):
        np.savez("bars.npz", x=x, y=one)
        assert load("bars.npz").train.y.shape[1:] == (1,)
    np.savez("bars.npz", x_train=x[:20], y_train=y[:20, 0], x_test=x[20:], y_test=np.arange(10))
    assert load("bars.npz").test.y.tolist() == [[float(k)] for k in range(10)]
    rows = np.column_stack([y[:, 0], x.reshape(30, -1)])
    np.savetxt("bars.csv", rows, delimiter=",", header="y," + ",".join(f"p{k}" for k in range(30)), comments="")
    found = load("bars.csv", val_size=0)
    assert sorted(torch.cat([found.train.y, found.test.y])[:, 0].tolist()) == pytest.approx(sorted(y[:, 0]))
    np.savez("bars.npz", x=x, y=np.round(2 * y[:, 1:]) + 2)
    assert load("bars.npz").train.y.dtype == torch.int64


def test_a_vector_of_one_number_is_a_condition():
    torch.manual_seed(0)
    model = Conditional((4,), 2, (8,), num_classes=1)
    with torch.no_grad():
        mean = model.decode(torch.zeros(2, 2), torch.tensor([[0.0], [3.0]])).base_dist.mean
    assert float((mean[0] - mean[1]).abs().max()) > 1e-3


def test_the_commands_of_the_page_run(monkeypatch):
    """With a tenth of the images and one epoch."""
    text = (ROOT / "docs" / "semi-supervised.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    made, trained, evaluated = map(shlex.split, block.splitlines())
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    assert made[:2] == ["python", "-c"]
    exec(made[2].replace("4000", "400"), {})
    less = ["--threads", "1", "--device", "cpu", "--quiet"]
    assert trained[:3] == ["python", "-m", "pyro_vae.train"]
    assert train.main([*trained[3:], *less, "--epochs", "1", "--num-samples", "5"]) == 0
    assert evaluated[:3] == ["python", "-m", "pyro_vae.evaluate"]
    assert evaluate.main([*evaluated[3:], *less, "--num-samples", "5"]) == 0
