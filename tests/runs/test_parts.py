"""Runs with the parts named by flags: made, saved, resumed bit for bit, loaded and evaluated; older runs have the defaults."""

from __future__ import annotations

import json

import pytest
import torch

import pyro_vae as pv
from pyro_vae import evaluate, train
from pyro_vae.cli.train_arguments import parse
from pyro_vae.distributions import Laplace, LearnedNormal
from pyro_vae.models.registry import PARTS
from pyro_vae.runs.build import make_plan
from pyro_vae.runs.config import Config, DataConfig, ModelConfig

SMALL = "--hidden 8 --latent-dim 2 --num-samples 20 --threads 1 --quiet --epochs".split()
NAMED = ["--likelihood", "laplace", "--prior", "diagonal-normal", "--posterior", "normal", "--network", "mlp"]


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("pyro_vae.report.draw_pictures", lambda *args, **options: [])


def test_a_run_with_named_parts_is_saved_resumed_loaded_and_evaluated(tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    assert train.main([*SMALL, "2", *NAMED, "--run-dir", "straight"]) == 0
    assert train.main([*SMALL, "1", *NAMED, "--run-dir", "resumed"]) == 0
    assert train.main(["--resume", "resumed", "--epochs", "2", "--quiet"]) == 0
    straight, resumed = (pv.load(name) for name in ("straight", "resumed"))
    for ours, theirs in zip(straight.vae.parameters(), resumed.vae.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (type(straight.vae.likelihood), type(straight.vae.prior)) == (Laplace, LearnedNormal)
    assert bool((straight.vae.prior.loc != 0).all())
    said = json.loads((tmp_path / "straight/config.json").read_text())["model"]
    assert {kind: said[kind] for kind in PARTS} == {
        "likelihood": "laplace", "prior": "diagonal-normal", "posterior": "normal", "network": "mlp"
    }  # fmt: skip
    summary = json.loads((tmp_path / "straight/summary.json").read_text())
    assert summary["density"] is True
    assert "bits_per_dim" not in summary["test"]
    assert evaluate.main(["straight", "--num-samples", "10", "--quiet"]) == 0


def test_a_likelihood_of_binary_data_has_them_binarized():
    for likelihood, mode in (("bernoulli", "dynamic"), ("laplace", "none"), ("continuous-bernoulli", "none")):
        assert Config(DataConfig(), ModelConfig(likelihood=likelihood)).data.binarize == mode


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--model linear --prior diagonal-normal", "prior: expected 'normal' in a linear model, got 'diagonal-normal'"),
        ("--model linear --likelihood laplace", "likelihood: expected 'normal' in a linear model, got 'laplace'"),
        (
            "--model autoencoder --prior diagonal-normal",
            "has no argument prior, got 'diagonal-normal'",
        ),
        ("--prior standard", "unknown prior 'standard': expected one of diagonal-normal, normal"),
        ("--posterior normal:3", "posterior normal: expected no arguments, got 'normal:3'"),
        ("--network cnn", "unknown network 'cnn': expected one of mlp"),
        ("--prior normal --model-options prior=normal", "prior: given twice, by --prior normal and by --model-options"),
        ("--model linear --network mlp", None),
        ("--model linear --posterior exact", None),
        ("--model linear --posterior normal", None),
    ],
)
def test_parts_that_do_not_suit_a_model_are_refused(words, sentence):
    config = parse(words.split())[0]
    if sentence is None:
        make_plan(config)
        return
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make_plan(config)
    assert sentence in str(caught.value)
