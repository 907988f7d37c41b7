"""Options that would do nothing, and classes of a user's that leave Python or half of their parameters as they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pyro_vae import pipeline, report, train
from pyro_vae.arguments import parse
from pyro_vae.description import describe
from pyro_vae.models import MODELS

SMALL = (
    "--latent-dim 2 --num-samples 5 --batch-size 200 --epochs 1 --threads 1 --device cpu --quiet --run-dir run".split()
)

OWN = """
import math, torch
from torch import nn
from pyro_vae import VAE


class Flat(nn.Module):
    def __init__(self, in_shape, out_shape, hidden, activation):
        super().__init__()
        self.out_shape, self.head = out_shape, nn.Linear(math.prod(in_shape), math.prod(out_shape))

    def forward(self, x):
        return self.head(x.flatten(1)).reshape(len(x), *self.out_shape)


class Own(VAE):
    def __init__(self, data_shape, latent_dim=2):
        super().__init__(data_shape, latent_dim, (8,))
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A user's folder with a module in it, from which the command is started."""
    (tmp_path / "faulty.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    sys.modules.pop("faulty", None)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])


def refused(capsys, *words: str) -> str:
    """What the command says that refuses these words and writes nothing."""
    capsys.readouterr()
    assert train.main([*SMALL, *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert not Path("run").exists()
    return error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model linear --hidden 32", "hidden: expected with networks that it changes, got 32 with --model linear"),
        (
            "--model linear --hidden",
            "hidden: expected with networks that it changes, got no layers with --model linear",
        ),
        ("--model linear --activation relu", "activation: expected with networks that it changes, got relu with"),
        ("--hidden --activation relu", "activation: expected with networks that it changes, got relu with --model vae"),
        ("--model linear --decoder faulty:Flat", "decoder: expected none in a linear model"),
        ("--model m1m2 --encoder faulty:Flat --model-options below=below", "encoder: expected with networks that it"),
        ("--model faulty:Own --hidden 32", "hidden: expected"),
    ],
)
def test_an_option_of_the_networks_that_changes_none_is_refused(capsys, no_pictures, words, said):
    if "below" in words:
        assert train.main([*SMALL[:-1], "below", "--hidden", "8"]) == 0
        words += " --labels 40"
    assert said in refused(capsys, *words.split())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("words", ["--hidden 8 16", "--activation relu"])
def test_each_model_reads_the_options_of_its_networks_and_says_so(name, words):
    more = ["--model-options", "posterior=normal"] if name == "linear" else []  # else it has no encoder
    prepared = pipeline.prepare(parse(["--model", name, *more, *words.split()])[0], torch.device("cpu"))
    assert ("hidden 8-16," if "--hidden" in words else "hidden 256-256,") in describe(prepared, "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model linear", "LinearVAE: latent_dim 16, normal likelihood,"),
        ("--hidden", "VAE: latent_dim 16, no hidden layer, bernoulli likelihood,"),
        ("--model m1m2 --latent-dim 2 --hidden 32 --model-options below=below", "M1M2: latent_dim 2, hidden 8-4, "),
    ],
)
def test_the_layers_that_are_said_are_those_that_are_there(no_pictures, words, said):
    if "below" in words:
        assert train.main([*SMALL[:-1], "below", "--hidden", "8", "4"]) == 0
    prepared = pipeline.prepare(parse(words.split())[0], torch.device("cpu"))
    assert said in describe(prepared, "cpu")


@pytest.mark.parametrize("flag", ["--model", "--encoder"])
@pytest.mark.parametrize("leaving", ["import sys; sys.exit()", "sys.exit('usage')", "raise SystemExit(3)", "exit(0)"])
def test_a_module_that_leaves_python_when_it_is_imported_is_refused(capsys, flag, leaving):
    Path("leaving.py").write_text(f"import sys\n{leaving}\n")
    error = refused(capsys, flag, "leaving:Own")
    assert "leaving:Own: expected a module that can be imported, got one that leaves Python (sys.exit)" in error
    assert "__main__" in error
