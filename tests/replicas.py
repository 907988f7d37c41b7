"""Replicas of one datum, and the exact value and gradient of a bound.

Each replica has parameters of its own, so that one gradient of the summed loss is a sample of as many independent
gradients: their mean and its standard error are tested against quadrature or an exact sum.
"""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.oracles import mixture, within

BETAS = (0.0, 0.5, 1.0, 4.0)
REPLICAS = 20_000
START = {"weight": 0.8, "loc": 0.5, "log_scale": -0.4}
X = 0.9


def program(normal=dist.Normal, replicas=REPLICAS, total=None, pixels=None):
    """z ~ N(0, 1), x ~ N(weight z, 0.6); q = N(loc, scale); parameters of its own for each replica.

    Args:
        normal: The guide's distribution.
        replicas: How many of the data are in a batch.
        total: How many there are; the batch is a random part of them.
        pixels: With so many pixels in a plate of their own within the data plate, which then is dimension -2.
    """
    total = total or replicas
    shape, dim = ((total,), -1) if pixels is None else ((total, 1), -2)

    def plate():
        return pyro.plate("data", total, subsample_size=replicas, dim=dim)

    def start(name):
        return pyro.param(name, torch.full(shape, START[name], dtype=torch.float64))

    def model(x):
        weight = start("weight")
        with plate() as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            with pyro.plate("pixels", pixels, dim=-1) if pixels else contextlib.nullcontext():
                pyro.sample("x", dist.Normal(weight[rows] * z, 0.6), obs=x[rows])

    def guide(x):
        loc, scale = start("loc"), start("log_scale").exp()
        with plate() as rows:
            pyro.sample("z", normal(loc[rows], scale[rows]))

    return model, guide


def log_w_of(eps, weight, loc, log_scale, beta, pixels=1):
    z = loc + log_scale.exp() * eps
    likelihood = pixels * dist.Normal(weight * z, 0.6).log_prob(torch.tensor(X, dtype=torch.float64))
    ratio = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) - dist.Normal(loc, log_scale.exp()).log_prob(z)
    return likelihood + beta * ratio


def by_quadrature(value, draws, beta, points=40, pixels=1):
    """The expectation of ``value`` over independent draws of q, its gradient and spread, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    eps = torch.stack(torch.meshgrid(*[nodes] * draws, indexing="ij")).flatten(1)
    mass = torch.stack(torch.meshgrid(*[weights] * draws, indexing="ij")).flatten(1).prod(0)
    params = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in START.items()}
    bound = value(log_w_of(eps, **params, beta=beta, pixels=pixels))
    expectation = (mass * bound).sum()
    gradient = torch.autograd.grad(expectation, list(params.values()))
    spread = (mass * (bound - expectation).square()).sum().sqrt()
    return expectation.detach(), dict(zip(params, map(float, gradient), strict=True)), float(spread.detach())


def gradients(objective, model, guide, total=REPLICAS):
    """Loss and a sample of each replica's gradient, of minus the loss, by parameter."""
    loss = objective.differentiable_loss(model, guide, torch.full((total,), X, dtype=torch.float64))
    return float(loss.detach()), of_replicas(loss)


def of_replicas(loss):
    store = pyro.get_param_store()
    params = {name: store[name].unconstrained() for name in START}
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    found = {n: torch.zeros(REPLICAS) if g is None else -g.flatten() for n, g in zip(params, grads, strict=True)}
    return {n: g[g != 0] if len(g) > REPLICAS else g for n, g in found.items()}  # rows that were not drawn have none


def agree(sample, exact):
    return within(sample.mean(), exact, sample.std() / math.sqrt(len(sample)) + 1e-12, factor=4.5)


MIXTURE = mixture()
LOGITS = [0.3, -0.2, 0.5]


def discrete(replicas, enumerate_=None):
    infer = {"enumerate": enumerate_} if enumerate_ else {}

    def guide(x):
        logits = pyro.param("logits", torch.tensor(LOGITS, dtype=torch.float64).expand(replicas, 3).clone())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits), infer=infer)

    def model(x):
        mu = pyro.param("mu", MIXTURE.locs.expand(replicas, 3).clone())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(MIXTURE.probs))
            chosen = (torch.nn.functional.one_hot(z, 3) * mu).sum(-1)
            pyro.sample("x", dist.Normal(chosen, 1.0), obs=x)

    return model, guide


def discrete_exact(value, draws, beta):
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    mu = MIXTURE.locs.clone().requires_grad_()
    log_q = logits.log_softmax(0)
    joint = dist.Normal(mu, 1.0).log_prob(torch.tensor(X, dtype=torch.float64)) + beta * (MIXTURE.probs.log() - log_q)
    combinations = torch.tensor(list(itertools.product(range(3), repeat=draws))).T
    mass, bound = log_q[combinations].sum(0).exp(), value(joint[combinations])
    exact = (mass * bound).sum()
    spread = (mass * (bound - exact).square()).sum().sqrt().detach()
    return (
        exact,
        spread,
        dict(zip(("logits", "mu"), torch.autograd.grad(exact, (logits, mu), retain_graph=True), strict=True)),
    )
