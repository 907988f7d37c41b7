"""The plan of a run: each part is made once, and training starts with it as it was made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import report, train
from pyro_vae.cli.train_arguments import parse
from pyro_vae.runs import build, pipeline

SMALL = "--latent-dim 2 --hidden 8 --num-samples 5 --batch-size 200 --threads 1 --device cpu --quiet".split()
PARTS = ("load_data", "make_vae", "make_objective", "fit_options", "callbacks")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def counted(monkeypatch, owner, name, calls):
    original = getattr(owner, name)

    def call(*args, **options):
        calls[name] += 1
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    "words", [[], ["--model", "tcvae"], ["--model", "m2", "--labels", "40", "--model-options", "temperature=0.7"]]
)
def test_each_part_is_made_once(words, monkeypatch):
    """Also where options of the model decide its objective."""
    calls = Counter()
    for name in PARTS:
        counted(monkeypatch, build, name, calls)
    assert train.main([*SMALL, *words, "--epochs", "1", "--run-dir", "run"]) == 0
    assert calls == dict.fromkeys(PARTS, 1)


def plan_of(*words):
    return pipeline.prepare(parse([*SMALL, *words])[0], torch.device("cpu"))


def test_the_trial_leaves_the_objective_as_it_was_made():
    capacity = plan_of("--capacity", "25:100", "--elbo", "mean-field").objective
    assert float(capacity.state_dict()["taken"]) == 0
    target = plan_of("--target-rate", "5").objective.state_dict()
    assert float(target["total"]) == 0


def test_a_total_correlation_has_the_number_of_training_data():
    plan = plan_of("--model", "tcvae")
    assert plan.objective.num_data == len(plan.data.train.x) == 1437


def test_the_start_at_the_data_comes_once_and_never_on_resume(monkeypatch):
    calls = Counter()
    counted(monkeypatch, pv.VAE, "center_output", calls)
    assert train.main([*SMALL, "--epochs", "1", "--run-dir", "run"]) == 0
    assert calls["center_output"] == 1
    assert train.main("--resume run --epochs 2 --threads 1 --device cpu --quiet".split()) == 0
    assert calls["center_output"] == 1
    assert len(pv.load(Path("run")).history) == 2
