"""Likelihoods by name."""

from __future__ import annotations

from pyro_vae.distributions.base import Likelihood
from pyro_vae.distributions.likelihoods.pixels import Bernoulli, ContinuousBernoulli
from pyro_vae.distributions.likelihoods.real import Normal

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
}
