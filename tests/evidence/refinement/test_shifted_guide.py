"""Distributions rebuilt with their parameters moved in unconstrained coordinates."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import SigmoidTransform

from pyro_vae.evidence.refinement.shifted_guide import shifted, with_covariance, zero_offsets


def _double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


LOC, SCALE = _double([[0.3, -1.0], [0.5, 2.0], [0.0, 0.1]], [[0.5, 1.2], [0.1, 3.0], [1.0, 0.7]])
FAMILIES = {
    "normal": (dist.Normal(LOC, SCALE).to_event(1), 2),
    "multivariate normal": (dist.MultivariateNormal(LOC, scale_tril=(SCALE.diag_embed() + 0.3).tril()), 2),
    "given a covariance": (with_covariance(dist.Normal(LOC, SCALE).to_event(1)), 2),
    "covariance": (dist.MultivariateNormal(LOC, covariance_matrix=SCALE.diag_embed()), 2),
    "low rank": (dist.LowRankMultivariateNormal(LOC, LOC[..., None], SCALE), 3),
    "logistic normal": (dist.TransformedDistribution(dist.Normal(LOC, SCALE), [SigmoidTransform()]).to_event(1), 2),
    "log normal": (dist.LogNormal(LOC, SCALE).to_event(1), 2),
    "gamma": (dist.Gamma(SCALE, SCALE + 1).to_event(1), 2),
    "beta": (dist.Beta(SCALE, SCALE + 1).to_event(1), 2),
    "dirichlet": (dist.Dirichlet(SCALE), 1),
    "student": (dist.StudentT(SCALE + 1, LOC, SCALE).to_event(1), 3),
    "laplace": (dist.Laplace(LOC, SCALE).to_event(1), 2),
    "categorical": (dist.Categorical(logits=LOC), 1),
    "bernoulli": (dist.Bernoulli(probs=SCALE / 4).to_event(1), 1),
    "relaxed": (dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=LOC), 1),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_rebuilt_and_moved(family):
    fn, number = FAMILIES[family]
    offsets = zero_offsets(fn)
    assert len(offsets) == number
    value = fn.sample((4,))
    torch.testing.assert_close(shifted(fn, offsets).log_prob(value), fn.log_prob(value))
    for k in range(number):
        moved = [o + (0.2 + 0.1 * torch.arange(o.numel())).view_as(o) * (j == k) for j, o in enumerate(offsets)]
        new = shifted(fn, moved)
        assert (new.batch_shape, new.event_shape) == (fn.batch_shape, fn.event_shape)
        assert float((new.log_prob(value) - fn.log_prob(value)).abs().max()) > 1e-3
        new._validate_args = True
        assert bool(new.log_prob(value).isfinite().all())


def test_locations_move_in_units_of_the_scale():
    fn = dist.Normal(LOC, SCALE)
    torch.testing.assert_close(shifted(fn, [torch.ones_like(LOC), torch.zeros_like(LOC)]).loc, LOC + SCALE)
    torch.testing.assert_close(shifted(fn, [torch.zeros_like(LOC), torch.ones_like(LOC)]).scale, SCALE * math.e)
