"""Reweighted wake-sleep and the thermodynamic variational objective, against quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal

from pyro_vae import elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import OBJECTIVES
from pyro_vae.inference.objectives.weighted import log_mean_exp
from tests.oracles import LinearGaussian, within
from tests.replicas import (
    START,
    X,
    agree,
    by_quadrature,
    gradients,
    log_w_of,
    program,
)

ORACLE = LinearGaussian()


def test_every_self_normalized_objective_is_tested_here():
    assert {name for name, cls in OBJECTIVES.items() if cls.self_normalized} == {"rws", "tvo"}


@pytest.mark.parametrize("normal", [dist.Normal, NonreparameterizedNormal])
def test_rws_wakes_both_sides(normal):
    """theta: the gradient of the bound; phi: sum of normalized weights times the score, both by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    eps = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij")).flatten(1)
    mass = torch.outer(weights, weights).flatten()
    params = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in START.items()}
    normalized = log_w_of(eps, **params, beta=1.0).detach().softmax(0)
    z = (params["loc"] + params["log_scale"].exp() * eps).detach()
    log_q = dist.Normal(params["loc"], params["log_scale"].exp()).log_prob(z)
    wake = torch.autograd.grad((mass * (normalized * log_q).sum(0)).sum(), [params["loc"], params["log_scale"]])
    _, found = gradients(elbo("rws", num_particles=2), *program(normal))
    assert agree(found["weight"], by_quadrature(log_mean_exp, 2, 1.0)[1]["weight"])
    assert agree(found["loc"], wake[0])
    assert agree(found["log_scale"], wake[1])


@pytest.mark.parametrize("partitions", [1, 2, 5])
def test_tvo_is_the_riemann_sum_along_the_path(partitions):
    """With many draws, value and gradient are those of the sum of exact expectations under q^(1-t) p^t."""
    objective = elbo("tvo", partitions=partitions, num_particles=4000, first_point=0.05)
    assert objective.points[0] == 0
    assert objective.points[-1] == 1
    assert len(objective.points) == partitions + 1
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, mass = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    params = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in START.items()}
    log_w = log_w_of(nodes, **params, beta=1.0)
    exact = sum(
        (b - a) * (((a * log_w + mass.log()).softmax(0)) * log_w).sum() for a, b in itertools.pairwise(objective.points)
    )
    gradient = dict(zip(params, torch.autograd.grad(exact, list(params.values())), strict=True))
    replicas = 400
    x = torch.full((replicas,), X, dtype=torch.float64)
    loss = objective.differentiable_loss(*program(replicas=replicas), x)
    store = pyro.get_param_store()
    for name in START:
        (found,) = torch.autograd.grad(loss, store[name].unconstrained(), retain_graph=True)
        error = found.std() / math.sqrt(replicas) + 3 / 4000  # the bias of self-normalization is of order 1 / K
        assert within(-found.mean(), gradient[name].detach(), error), name
    assert -float(loss.detach()) / replicas == pytest.approx(float(exact.detach()), abs=0.01)
    assert float(exact.detach()) < float(dist.Normal(0.0, math.hypot(START["weight"], 0.6)).log_prob(torch.tensor(X)))


@pytest.mark.parametrize("name", ["rws", "tvo"])
def test_a_beta_is_refused_where_there_is_no_kl(name):
    pair = scale_kl_pair(ORACLE.model, ORACLE.guide(), 0.5)
    with pytest.raises(ValueError, match=f"{name}: this objective has no KL to weight, but site 'z' has a KL weight"):
        elbo(name).loss(*pair, ORACLE.draw(3))
