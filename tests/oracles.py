"""Closed forms: models whose log p(x), posterior and bounds are known exactly, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

Program = Callable[..., object]


@dataclass(frozen=True)
class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I): probabilistic PCA.

    The posterior N(m(x), S) has a full covariance, with Cholesky factor L. The guides are N(m + d L 1, c^2 S): exact at
    d = 0 and c = 1; every divergence from the posterior is a closed form in d and c, whatever x.
    """

    data_dim: int = 5
    latent_dim: int = 2
    scale: float = 0.6
    seed: int = 0

    @property
    def weight(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.data_dim, self.latent_dim, generator=generator, dtype=torch.float64)

    @property
    def bias(self) -> Tensor:
        return torch.linspace(-1, 1, self.data_dim, dtype=torch.float64)

    def draw(self, num: int, seed: int = 0) -> Tensor:
        """Data from the model, shape (num, D)."""
        generator = torch.Generator().manual_seed(100 + seed)
        z = torch.randn(num, self.latent_dim, generator=generator, dtype=torch.float64)
        noise = torch.randn(num, self.data_dim, generator=generator, dtype=torch.float64)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_px(self, x: Tensor) -> Tensor:
        """Exact log p(x) of each datum, shape (B,), nats."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(self.data_dim, dtype=torch.float64)
        return dist.MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, shape (B, Z), and Cholesky factor of the covariance, shape (Z, Z), of p(z|x)."""
        precision = torch.eye(self.latent_dim, dtype=torch.float64) + self.weight.T @ self.weight / self.scale**2
        covariance = torch.linalg.inv(precision)
        mean = (x - self.bias) @ self.weight @ covariance / self.scale**2
        return mean, torch.linalg.cholesky(covariance)

    def model(self, x: Tensor) -> None:
        zero = torch.zeros(self.latent_dim, dtype=torch.float64)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x)

    def guide(self, shift: float = 0.0, stretch: float = 1.0) -> Program:
        """The guide N(m + shift L 1, stretch^2 S)."""

        def guide(x: Tensor) -> None:
            mean, factor = self.posterior(x)
            loc = mean + shift * factor.sum(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=stretch * factor))

        return guide

    def kl(self, shift: float, stretch: float) -> float:
        """KL(q || posterior) = log p(x) - ELBO, the same for every datum."""
        per_dim = 0.5 * (stretch**2 + shift**2 - 1) - math.log(stretch)
        return self.latent_dim * per_dim

    def relative_variance(self, shift: float, stretch: float) -> float:
        """Var(w) / p(x)^2 of one draw; infinite where stretch^2 <= 1/2."""
        excess = 2 * stretch**2 - 1
        if excess <= 0:
            return math.inf
        per_dim = stretch**2 / math.sqrt(excess) * math.exp(shift**2 / excess)
        return per_dim**self.latent_dim - 1

    def rate(self, x: Tensor, shift: float, stretch: float) -> Tensor:
        """KL(q || prior) of each datum, shape (B,)."""
        mean, factor = self.posterior(x)
        loc = mean + shift * factor.sum(-1)
        covariance = stretch**2 * factor @ factor.T
        spread = covariance.trace() - self.latent_dim - torch.logdet(covariance)
        return 0.5 * (loc.square().sum(-1) + spread)

    def distortion(self, x: Tensor, shift: float, stretch: float) -> Tensor:
        """-E_q log p(x|z) of each datum, shape (B,)."""
        mean, factor = self.posterior(x)
        loc = mean + shift * factor.sum(-1)
        residual = x - self.bias - loc @ self.weight.T
        spread = stretch**2 * (self.weight @ factor).square().sum()
        constant = self.data_dim * math.log(2 * math.pi * self.scale**2)
        return 0.5 * ((residual.square().sum(-1) + spread) / self.scale**2 + constant)


def quadrature_log_px(log_likelihood: Callable[[Tensor], Tensor], points: int = 64) -> Tensor:
    """log of the integral of N(z; 0, 1) exp(log_likelihood(z)), one latent dimension, by Gauss-Hermite quadrature.

    Args:
        log_likelihood: z of shape (P, 1) to shape (P, B).
        points: Nodes; exact for polynomials up to degree 2 points - 1.
    """
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    z = torch.from_numpy(nodes)[:, None]
    log_weights = torch.from_numpy(np.log(weights / math.sqrt(2 * math.pi)))
    return (log_likelihood(z) + log_weights[:, None]).logsumexp(0)


def all_binary(dim: int) -> Tensor:
    """All 2^dim binary vectors, shape (2^dim, dim), float64."""
    codes = torch.arange(2**dim)
    return ((codes[:, None] >> torch.arange(dim)) & 1).double()


@dataclass(frozen=True)
class Mixture:
    """z ~ Categorical(pi) with 3 values, x ~ N(mu_z, 1): a discrete latent, summed exactly."""

    probs: Tensor
    locs: Tensor

    def joint(self, x: Tensor) -> Tensor:
        """log p(x, z) for every value, shape (B, 3)."""
        return self.probs.log() + dist.Normal(self.locs, 1.0).log_prob(x[:, None])

    def log_px(self, x: Tensor) -> Tensor:
        return self.joint(x).logsumexp(-1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(self.probs))
            pyro.sample("x", dist.Normal(self.locs[z], 1.0), obs=x)

    def exact_guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.joint(x)))


def mixture() -> Mixture:
    return Mixture(
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    )


def within(value: Tensor | float, exact: Tensor | float, error: Tensor | float, factor: float = 4.0) -> bool:
    """Whether every |value - exact| is at most factor standard errors (and the errors are real ones)."""
    value, exact, error = (torch.as_tensor(v, dtype=torch.float64) for v in (value, exact, error))
    assert bool((error > 0).all()), "a standard error of zero tests nothing"
    return bool(((value - exact).abs() <= factor * error).all())
