"""Chains along the continuous latents of a model whose labels are summed out: against sums over y and quadratures."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.evidence import annealed_importance_sampling, bidirectional
from tests.models.semi_supervised.test_semi_supervised import JOINT, joint, marginal, small
from tests.oracles import all_binary

DOUBLE = {"dtype": torch.float64}
LOCS = torch.tensor([-1.5, 0.0, 2.0], **DOUBLE)
PARALLEL = {"enumerate": "parallel"}


def holds(found, exact, width):
    """Whether the bracket's means lie on both sides of log p(x), up to their errors, and near to each other."""
    below, above = found.lower.log_px - exact, found.upper.log_px - exact
    errors = [float(v.std()) / math.sqrt(len(v)) for v in (below, above)]
    assert min(errors) > 0
    assert float(found.gap.mean()) < width
    return float(below.mean()) < 4 * errors[0] and float(above.mean()) > -4 * errors[1]


QUICK = [("M2", "prior")]
SLOW = [(name, start) for name in JOINT for start in ("prior", "guide") if (name, start) not in QUICK]


@pytest.mark.parametrize(("name", "start"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_the_bracket_of_a_semi_supervised_model_holds_its_log_px(name, start):
    model, unknown = small(name).eval(), torch.full((160,), -1)
    words = {"num_chains": 8, "num_steps": 20, "start": start, "seed": 0}
    found = bidirectional(model.model, model.guide, torch.zeros(160, 4, **DOUBLE), unknown, **words)
    assert torch.equal(found.args[1], unknown)
    assert holds(found, marginal(joint(name, model, found.args[0]), unknown), 0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "compile"), [("prior", False), ("guide", False), ("guide", True)])
@pytest.mark.parametrize("name", JOINT)
def test_chains_find_log_px_of_each_image_with_and_without_a_label(name, start, compile):
    """Labels known for some: log p(x, y) there. The weights average to it, so that many chains come near."""
    model, x = small(name).eval(), all_binary(4)
    y = torch.arange(16) % 4 - 1
    exact = marginal(joint(name, model, x), y)
    words = {"num_chains": 256, "num_steps": 30, "start": start, "seed": 1, "compile": compile}
    found = annealed_importance_sampling(model.model, model.guide, x, y, **words)
    known = found.std_error.isfinite()
    assert int(known.sum()) >= 8
    assert bool(((found.log_px - exact).abs() <= 4.5 * found.std_error)[known].all())


def model_of(marks):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(3, **DOUBLE)), infer=marks)
            z = pyro.sample("z", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
            pyro.sample("x", dist.Normal(z + LOCS[y], 1.0), obs=x)

    return model


def test_a_label_that_the_model_alone_marks():
    """log p(x) = log of the mean of N(x; m_y, 2) over y; no guide."""
    found = bidirectional(model_of(PARALLEL), None, torch.zeros(160, **DOUBLE), num_chains=8, num_steps=30, seed=0)
    exact = dist.Normal(LOCS, math.sqrt(2)).log_prob(found.args[0][:, None]).logsumexp(1) - math.log(3)
    assert holds(found, exact, 0.1)
    with pytest.raises(ValueError, match="got Categorical; use importance_sampling, or mark it"):
        bidirectional(model_of({}), None, torch.zeros(4, **DOUBLE))


def test_a_support_that_depends_on_what_is_summed_over_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, **DOUBLE)), infer=PARALLEL)
            z = pyro.sample("z", dist.Uniform(torch.zeros((), **DOUBLE), 1.0 + y))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with (
        pytest.raises(ValueError, match="latent site 'z': expected the same support for all values"),
        pytest.warns(UserWarning, match="does not run inside an outer plate"),
    ):
        annealed_importance_sampling(model, None, torch.zeros(4, **DOUBLE), num_chains=4, num_steps=5)
