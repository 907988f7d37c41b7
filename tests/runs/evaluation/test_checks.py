from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Inputs
from pyro_vae.models.conditional import Conditional
from pyro_vae.runs.evaluation.checks import CHECKS, run_check, wording_for

SHAPE = (1, 4, 4)
OF_X = {"log p(x)", "log p(x, z)", "q(z|x)", "I(x; z)"}


class Joint(Conditional):
    """Its label is observed, not given."""

    def model(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            label = pyro.sample("y", dist.Categorical(logits=x.new_zeros(self.num_classes)), obs=y)
            pyro.sample("x", self.decode(pyro.sample("z", self.prior()), label), obs=x)


CONDITIONAL = {"log p(x|y)", "log p(x, z|y)", "q(z|x, y)", "I(x, y; z)"}
JOINT = {"log p(x, y)", "log p(x, y, z)", "q(z|x, y)", "I(x, y; z)"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(pv.VAE, OF_X), (Conditional, CONDITIONAL), (Joint, JOINT)],
    ids=["x", "x given y", "x and y"],
)
def test_the_checks_say_what_they_are_of(kind, expected):
    labels = () if kind is pv.VAE else (torch.arange(20) % 3,)
    vae = kind(SHAPE, 2, (4,), **({"num_classes": 3} if labels else {})).eval()
    columns = Inputs(torch.rand(20, *SHAPE).round(), *labels)
    wording, found = wording_for(vae, columns), []
    for name in CHECKS:
        options = CHECKS[name].least | ({"num_simulations": 100, "num_draws": 9} if name == "calibration" else {})
        result = run_check(name, vae, columns, 0, **options)
        _, text, pictures = CHECKS[name].describe(result, wording)
        found += [text, *(word.get_text() for figure in pictures.values() for word in figure.findobj(_has_text))]
    text = "\n".join(found)
    assert {words for words in OF_X | CONDITIONAL | JOINT if words in text} == expected


def _has_text(artist):
    return hasattr(artist, "get_text")
