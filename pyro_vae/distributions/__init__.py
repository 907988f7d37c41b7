"""Parameters to Pyro distributions: likelihoods p(x|z), priors p(z), posteriors q(z|x)."""

from pyro_vae.distributions.likelihoods import LIKELIHOODS, Bernoulli, ContinuousBernoulli, Normal
from pyro_vae.distributions.posteriors import POSTERIORS, DiagonalNormal
from pyro_vae.distributions.priors import PRIORS, StandardNormal

__all__ = [
    "LIKELIHOODS",
    "POSTERIORS",
    "PRIORS",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiagonalNormal",
    "Normal",
    "StandardNormal",
]
