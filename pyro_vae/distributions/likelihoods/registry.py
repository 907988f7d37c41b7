"""Likelihoods by name, ``--likelihood NAME``."""

from __future__ import annotations

from pyro_vae.distributions.base import Likelihood
from pyro_vae.distributions.likelihoods.pixels import Bernoulli, ContinuousBernoulli
from pyro_vae.distributions.likelihoods.real import Laplace, Normal

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "laplace": Laplace,
}
