"""Parameters to Pyro distributions: likelihoods p(x|z), priors p(z), posteriors q(z|x)."""

from pyro_vae.distributions.likelihoods.pixels import Bernoulli, ContinuousBernoulli
from pyro_vae.distributions.likelihoods.real import Normal
from pyro_vae.distributions.likelihoods.registry import LIKELIHOODS
from pyro_vae.distributions.posteriors.normal import DiagonalNormal
from pyro_vae.distributions.posteriors.registry import POSTERIORS
from pyro_vae.distributions.priors.normal import StandardNormal
from pyro_vae.distributions.priors.registry import PRIORS

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
