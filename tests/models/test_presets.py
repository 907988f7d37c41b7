"""`beta` and `tcvae`: names for settings of training, around the same VAE."""

from __future__ import annotations

import math
import re
import runpy
import sys
import warnings

import pytest
import torch

from pyro_vae import VAE, data, elbo, fit, load, train
from pyro_vae.inference import Capacity, TotalCorrelation
from pyro_vae.models.presets import TCVAE, BetaVAE
from pyro_vae.runs import pipeline
from pyro_vae.runs.config import TrainConfig
from tests.children import ROOT

X = torch.bernoulli(torch.full((40, 6), 0.5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [BetaVAE, TCVAE])
def test_its_defaults_differ_from_those_of_training(kind):
    plain = TrainConfig()
    for name, value in kind.defaults.items():
        assert getattr(plain, name) != value
    assert TCVAE.objective == "mean-field"


def fitted(kind, **options):
    """The parameters of a model after three epochs, from one seed."""
    torch.manual_seed(0)
    vae = kind((6,), 2, (5,))
    fit(vae, X, epochs=3, batch_size=16, lr=0.01, progress=False, compile=False, **options)
    return torch.nn.utils.parameters_to_vector(vae.parameters()).detach()


def penalty(weight=6.0, num_data=40):
    return TotalCorrelation(elbo("mean-field"), weight, num_data=num_data)


@pytest.mark.parametrize(
    ("kind", "named", "plain"),
    [
        (BetaVAE, {}, {"beta": 4.0}),
        (BetaVAE, {"elbo": "mean-field"}, {"elbo": "mean-field", "beta": 4.0}),
        (BetaVAE, {"beta": 2.0}, {"beta": 2.0}),
        (BetaVAE, {"elbo": Capacity(elbo("trace"), 1.0)}, {"elbo": Capacity(elbo("trace"), 1.0)}),
        (TCVAE, {}, {"elbo": penalty()}),
        (TCVAE, {"beta": 2.0}, {"elbo": penalty(), "beta": 2.0}),
        (TCVAE, {"elbo": elbo("trace")}, {"elbo": "trace"}),
    ],
)
def test_fit_uses_their_defaults_unless_others_are_given(kind, named, plain):
    assert torch.equal(fitted(kind, **named), fitted(VAE, **plain))


def test_their_defaults_make_another_model():
    others = [fitted(VAE, **options) for options in ({}, {"elbo": "mean-field"}, {"elbo": penalty(weight=3.0)})]
    for kind in (BetaVAE, TCVAE):
        assert all(not torch.allclose(fitted(kind), other, atol=1e-4) for other in others)


@pytest.mark.parametrize("words", [["--model", "tcvae"], ["--total-correlation", "6", "--elbo", "mean-field"]])
def test_the_command_trains_it_with_the_size_of_the_data(words, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "finish", lambda *_: None)  # evaluation and pictures
    shape = ["--hidden", "8", "--latent-dim", "3", "--batch-size", "512", "--epochs", "1", "--no-compile", "--quiet"]
    assert train.main([*words, *shape, "--run-dir", str(tmp_path / "run")]) == 0
    ours = load(tmp_path / "run").vae
    digits = data.load("digits")
    torch.manual_seed(0)
    vae = VAE(digits.data_shape, 3, (8,))
    vae.center_output(*digits.moments())
    objective = TotalCorrelation(elbo("mean-field", max_plate_nesting=1), 6.0, num_data=len(digits.train.x))
    fit(vae, digits, elbo=objective, batch_size=512, epochs=1, progress=False, compile=False)
    for theirs, mine in zip(vae.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_the_example_prints_both_scores_and_draws(tmp_path, monkeypatch, capsys):
    words = ["disentangling.py", "--epochs", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "examples" / words[0]), run_name="__main__")
    out = capsys.readouterr().out
    for title in ("beta 4", "tcvae 6"):
        mig, score = map(float, re.search(rf"{title}: MIG (\S+) .* score (\S+) \(", out).groups())
        assert 0.05 < mig < 0.6  # places are found at once, nothing else
        assert 0.35 < score < 0.9
    assert {"factors.png", "traversals.png"} == {file.name for file in tmp_path.iterdir()}


class Unbounded(VAE):
    """One whose objective is said to bound nothing."""

    has_bound = False


def test_a_model_without_a_bound_is_pressed_too():
    torch.manual_seed(0)
    history = fit(Unbounded((6,), 2, (5,)), X, elbo=penalty(), epochs=1, progress=False, compile=False)
    assert "train_elbo" not in history.rows[0]


@pytest.mark.parametrize(
    ("estimator", "size", "warned"), [("even", 8, True), ("weighted", 8, False), ("even", 400, False)]
)
@pytest.mark.thin(3)
def test_fit_says_where_batches_hold_no_neighbours_of_a_code(estimator, size, warned):
    """Far codes of 2 units, one for each of 400 points on a circle, which no batch of 8 has twice."""
    angles = 2 * math.pi * torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    x = 4 * torch.cat([angles.cos(), angles.sin()], 1)
    torch.manual_seed(0)
    vae = VAE((2,), 2, (16,), likelihood="normal")
    objective = TotalCorrelation(elbo("mean-field"), 6.0, estimator=estimator, num_data=400)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epochs = 8 if size == 8 else 60
        history = fit(vae, x, elbo=objective, epochs=epochs, batch_size=size, lr=0.02, progress=False, compile=False)
    said = [str(w.message) for w in caught if "total correlation" in str(w.message)]
    assert len(said) == warned
    if warned:
        assert f"batch of {size} holds too few neighbours" in said[0]
    below = [(e - o) / 5 < -0.1 for e, o in zip(history["train_elbo"], history["objective"], strict=True)]
    assert any(below) == warned
