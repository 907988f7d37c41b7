"""Common mistakes in a user's class: the error names the class, the site, the remedy, file and line."""

from __future__ import annotations

import sys

import pytest
import torch

from pyro_vae import train

SMALL = (
    "--latent-dim 3 --num-samples 5 --batch-size 200 --epochs 1 --threads 1 --device cpu --quiet --run-dir run".split()
)

OWN = """
import pyro, torch
import pyro.distributions as dist
from torch import nn
from pyro_vae.models import Model


class Good(Model):
    defaults = {"binarize": "dynamic"}

    def __init__(self, data_shape, latent_dim=3):
        super().__init__(data_shape, latent_dim)
        self.decoder, self.encoder = nn.Linear(latent_dim, 64), nn.Linear(64, latent_dim)

    def prior(self):
        return dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)

    def model(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 1.0).to_event(1))


class NoEvent(Good):
    def guide(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 1.0))  # no event


class NoPlate(Good):
    def model(self, x):
        pyro.module(self.name, self)
        z = pyro.sample("z", self.prior().expand([len(x)]))  # no plate
        pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))


class Refusing(Good):
    def model(self, x):
        raise ValueError("not today")


class CenterArgs(Good):
    def center_output(self):  # no arguments
        pass


class CenterFails(Good):
    def center_output(self, mean, scale):
        raise ValueError("my centre fails")


class Logits(Good):
    takes, num_classes = ("x", "y"), 10

    def model(self, x, y):
        super().model(x)

    def guide(self, x, y):
        super().guide(x)

    def classify(self, x):  # logits
        return torch.arange(10.0).sub(3).expand(len(x), 10)


class Sampling(Good):
    def sample(self, num_samples):  # of nothing
        return torch.full((num_samples, 1, 8, 8), float("nan"))


class Bound(Good):
    has_bound = "no"


class Sampled(Good):
    sampled = 3


class Support(Good):
    class likelihood:
        support = "binry"


class Objective(Good):
    objective = "enumm"


class Beta(Good):
    defaults = {"beta": "four"}


class Rate(Good):
    defaults = {"lr": "fast"}
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The command runs in a user's folder with a module."""
    (tmp_path / "faulty_programs.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)
    sys.modules.pop("faulty_programs", None)


@pytest.mark.parametrize(
    ("name", "latent_dim", "said", "remedy", "line"),
    [
        (
            "NoEvent",
            3,
            ": expected log p of size 2 in dimension -1 at site 'z' within plate 'data', got 3",
            "add .to_event(1)",
            "# no event",
        ),
        (
            "NoEvent",
            2,
            ": expected equally many event dimensions of site 'z', got 1 in the model and 0 in",
            "add .to_event(1)",
            "# no event",
        ),
        (
            "NoPlate",
            3,
            ": site 'z' needs log p of shape () to fit its plates, got (2,)",
            'put the site in pyro.plate("data", len(x), dim=-1), or add .to_event(1)',
            "# no plate",
        ),
        (
            "Refusing",
            3,
            ": expected a program that runs on these data, got ValueError: not today",
            "correct the program, or choose other data",
            "not today",
        ),
        ("CenterArgs", 3, ".center_output: expected a method that runs", "correct or remove", "# no arguments"),
        ("CenterFails", 3, ".center_output: expected a method", "got ValueError: my centre fails", "my centre fails"),
        (
            "Logits",
            3,
            ".classify: expected probabilities of the classes, which sum to 1, got numbers from -3 to 6 that sum to 15 (",
            "return the softmax",
            "# logits",
        ),
        ("Sampling", 3, ".sample: expected finite numbers, got nan (", "correct or remove", "# of nothing"),
        ("Bound", 3, ".has_bound: expected True or False, got 'no'", "correct the class", None),
        ("Sampled", 3, ".sampled: expected a string, got 3", "correct the class", None),
        ("Support", 3, ".likelihood.support: expected one of 'binary', 'unit', 'real', got 'binry'", "correct", None),
        ("Objective", 3, ".objective: unknown objective 'enumm': expected one of", "did you mean 'enum'?", None),
        ("Beta", 3, ".defaults: beta: expected a number", "got 'four'", None),
        ("Rate", 3, ".defaults: train.lr: expected a number, got 'fast'", "correct the value", None),
    ],
)
def test_a_mistake_is_reported_with_its_place(own, capfd, recwarn, name, latent_dim, said, remedy, line):
    assert train.main([*SMALL, "--model", f"faulty_programs:{name}", "--latent-dim", str(latent_dim)]) == 2
    out, error = capfd.readouterr()
    assert f"model faulty_programs:{name}{said}" in error
    assert remedy in error
    assert out == ""
    assert error.count("\n") == 1, error
    assert not [w for w in recwarn if w.category is UserWarning]
    assert not (own / "run").exists()
    if line is not None:
        number = OWN[: OWN.index(line)].count("\n") + 1
        assert f"faulty_programs.py, line {number})" in error


def test_a_flag_of_ones_own_is_not_blamed_on_the_class(capsys):
    assert train.main([*SMALL, "--model", "faulty_programs:Beta", "--beta", "five"]) == 2
    error = capsys.readouterr().err
    assert "error: beta: expected a number" in error
    assert "defaults" not in error
