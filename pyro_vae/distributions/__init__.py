"""Likelihoods p(x|z), priors p(z) and posteriors q(z|x): modules that return Pyro distributions."""

from pyro_vae.distributions.base import Likelihood, Posterior, Prior
from pyro_vae.distributions.likelihoods.pixels import Bernoulli, ContinuousBernoulli
from pyro_vae.distributions.likelihoods.real import Laplace, Normal
from pyro_vae.distributions.likelihoods.registry import LIKELIHOODS
from pyro_vae.distributions.posteriors.normal import DiagonalNormal
from pyro_vae.distributions.posteriors.registry import POSTERIORS
from pyro_vae.distributions.priors.normal import LearnedNormal, StandardNormal
from pyro_vae.distributions.priors.registry import PRIORS

__all__ = [
    "LIKELIHOODS",
    "POSTERIORS",
    "PRIORS",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiagonalNormal",
    "Laplace",
    "LearnedNormal",
    "Likelihood",
    "Normal",
    "Posterior",
    "Prior",
    "StandardNormal",
]
