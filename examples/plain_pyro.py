"""KL weights, log weights and log p(x) for two plain Pyro functions, with no class of pyro_vae in sight.

A two-layer model with a closed form: a ~ N(0, 1), b ~ N(a, 1), x ~ N(b, 1), so that x ~ N(0, 3) and the estimate of
log p(x) can be checked.

    python examples/plain_pyro.py
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.handlers import scale_kl_pair


def model(rows: Tensor) -> None:
    """The generative model: two latent layers, data in one plate."""
    with pyro.plate("rows", len(rows)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("pixels", dist.Normal(b, 1.0), obs=rows)


def guide(rows: Tensor) -> None:
    """A guide linear in the data, whose best parameters are the exact posterior."""
    weight = pyro.param("weight", torch.zeros(3))
    scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(rows)):
        a = pyro.sample("a", dist.Normal(weight[0] * rows, scale[0]))
        pyro.sample("b", dist.Normal(weight[1] * rows + weight[2] * a, scale[1]))


def main() -> None:
    """Train at beta = 1 and compare log p(x) with the closed form; then take one step at beta = 4."""
    pyro.set_rng_seed(0)
    rows = math.sqrt(3) * torch.randn(500)
    svi = pv.SVI(
        model, guide, pyro.optim.Adam({"lr": 0.02}), pv.elbo("trace", num_particles=5, vectorize_particles=True)
    )
    for _ in range(600):
        svi.step(rows)

    estimate = pv.evidence.importance_sampling(model, guide, rows, num_samples=1000)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(rows).mean()
    summary = estimate.summary()
    print(f"weights {tuple(pv.log_weights(model, guide, rows, num_samples=7).shape)}")
    print(f"log p(x): exact {exact:.4f}, estimated {summary.log_px:.4f}, Monte Carlo error {summary.mc_error}")

    beta_model, beta_guide = scale_kl_pair(model, guide, 4.0)
    print(f"beta-ELBO at beta 4: {-pv.elbo('trace').loss(beta_model, beta_guide, rows) / len(rows):.2f} nats per datum")


if __name__ == "__main__":
    main()
