"""The ELBO with exact sums over discrete sites."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

from pyro_vae import elbo
from pyro_vae.handlers import scale_kl_pair
from tests.replicas import (
    BETAS,
    MIXTURE,
    X,
    discrete,
    discrete_exact,
)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("factor", [1, 4])
def test_enumeration_in_the_guide_is_exact(beta, factor):
    exact, _, gradient = discrete_exact(lambda w: w.mean(0), 1, beta)
    model, guide = discrete(3, "parallel")
    pair = scale_kl_pair(poutine.scale(model, factor), poutine.scale(guide, factor), beta)
    x = torch.full((3,), X, dtype=torch.float64)
    objective = elbo("enum", max_plate_nesting=1)
    loss = objective.differentiable_loss(*pair, x)
    assert float(-loss.detach()) == pytest.approx(3 * factor * float(exact.detach()))
    store = pyro.get_param_store()
    for parameter in ("logits", "mu"):
        (found,) = torch.autograd.grad(loss, store[parameter].unconstrained(), retain_graph=True)
        torch.testing.assert_close(-found / factor, gradient[parameter].expand(3, 3))
    at_one = discrete_exact(lambda w: w.mean(0), 1, 1.0)[0].detach()
    torch.testing.assert_close(objective.bound(model, guide, x), at_one.expand(3))
    theirs = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert objective.loss(model, guide, x) == pytest.approx(theirs)


def test_enumeration_in_the_model_sums_the_site_out():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(MIXTURE.probs), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(MIXTURE.locs[z], 1.0), obs=x)

    def guide(x):
        pass

    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    objective = elbo("enum", max_plate_nesting=1)
    torch.testing.assert_close(objective.bound(model, guide, x), MIXTURE.log_px(x))
    assert -objective.loss(model, guide, x) == pytest.approx(float(MIXTURE.log_px(x).sum()))


def test_enum_of_a_markov_chain_is_pyros_own():
    """Its sites share axes; the loss is had by Pyro's contraction, a bound for each datum is not."""

    def model(x):
        table = pyro.param("table", torch.tensor([[0.7, 0.3], [0.4, 0.6]]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            state = torch.tensor(0)
            for t in pyro.markov(range(4)):
                state = pyro.sample(f"s{t}", dist.Categorical(table[state]), infer={"enumerate": "parallel"})
                pyro.sample(f"x{t}", dist.Bernoulli(0.2 + 0.5 * state.float()), obs=x[:, t])

    x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    programs = model, lambda x: None
    table, noise = torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([0.2, 0.7])
    exact = 0.0
    for row in x:
        total = 0.0
        for path in itertools.product((0, 1), repeat=4):
            p = 1.0
            for t, s in enumerate(path):
                p *= float(table[0 if t == 0 else path[t - 1], s] * (noise[s] if row[t] else 1 - noise[s]))
            total += p
        exact += math.log(total)
    objective = elbo("enum", max_plate_nesting=1)
    assert objective.loss(*programs, x) == pytest.approx(-exact, rel=1e-5)
    with pytest.raises(ValueError, match="pyro.markov"):
        objective.bound(*programs, x)


def test_enum_begins_where_the_data_are():
    """No term of the sum may be on another device; the meta device stands for one."""

    def model(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4, device="meta")), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4, device="meta")), infer={"enumerate": "parallel"})

    with pyro.validation_enabled(False):
        objective = elbo("enum", max_plate_nesting=1)
        terms = objective.terms(model, guide, torch.zeros(3, device="meta"))
        assert {part.device.type for part in terms} == {"meta"}
        assert objective.bound(model, guide, torch.zeros(3, device="meta"), outer_scale="ignore").shape == (3,)
