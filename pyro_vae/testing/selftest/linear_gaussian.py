"""The linear-Gaussian VAE, and lines that compare figures with exact values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from scipy import stats
from torch import Tensor, nn

from pyro_vae.models.linear import LinearVAE

#: A line fails if its figure is more than this number of standard errors away from the exact value.
LIMIT = 4.6
#: Draws of an importance-weighted bound. With Z latent units its expectation is an integral over K * Z dimensions.
K = 2
NODES = 12  # quadrature nodes in each of the K * Z dimensions
ROUNDING = 1e-9
_NUMBERS = count()  # each instance has its own name in the store: an id may be used again


@dataclass(frozen=True)
class Line:
    """A line of the self-test's table: one figure beside its exact value.

    Attributes:
        name: Name of the objective or estimator; after a comma, the variant.
        what: Name of the quantity.
        exact: The exact value.
        found: The estimate.
        error: Standard error of the estimate; 0 if it should be exact.
        worst_of: Number of figures from which this line, the farthest from its exact value, was selected.
        freedom: Degrees of freedom of ``error``.
    """

    name: str
    what: str
    exact: float
    found: float
    error: float
    worst_of: int = 1
    freedom: float = math.inf

    @property
    def deviation(self) -> float:
        """Distance from the exact value, in standard errors.

        For a figure without a standard error the unit is the rounding error.
        """
        return (self.found - self.exact) / max(self.error, ROUNDING)

    @property
    def right(self) -> bool:
        """True if :attr:`deviation` is within ``LIMIT``; False for NaN."""
        return abs(self.deviation) <= LIMIT and math.isfinite(self.error)

    @property
    def chance(self) -> float:
        """Upper bound on the probability that a correct figure fails.

        Computed by Student's t distribution; 0 for a figure that must be exact.
        """
        return 2 * self.worst_of * float(stats.t.sf(LIMIT, self.freedom)) if self.error else 0.0

    def __str__(self) -> str:
        what = self.what + (f", worst of {self.worst_of}" if self.worst_of > 1 else "")
        words = f"{'ok  ' if self.right else 'FAIL'} {self.name:<37} {what:<34}"
        return f"{words} {self.exact:>9.4f} {self.found:>9.4f} {self.error:>8.1e} {self.deviation:>8.1f}"


HEADER = f"     {'':<37} {'':<34} {'exact':>9} {'found':>9} {'s.e.':>8} {'off/s.e.':>8}"


def slopes(
    name: str, what: str, exact: Tensor, loss: Callable[[], Tensor], leaves: list[nn.Parameter], rounds: int
) -> Iterator[Line]:
    """Compare a loss's mean gradient with the gradient of its expectation.

    Args:
        name: Name of the objective.
        what: Name of the gradient, for the table.
        exact: The exact expected loss, 0-dim, differentiable.
        loss: Function that evaluates the loss with new draws, 0-dim.
        leaves: Parameters with respect to which the gradients are taken.
        rounds: Number of evaluations of the loss.

    Yields:
        A line for each coordinate of the gradient.
    """

    def flat(value: Tensor) -> Tensor:
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        return torch.cat(
            [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(grads, leaves, strict=True)]
        )

    right = flat(exact)
    found = torch.stack([flat(loss()) for _ in range(rounds)])
    rows = zip(right.tolist(), found.mean(0).tolist(), (found.std(0) / math.sqrt(rounds)).tolist(), strict=True)
    yield from (Line(name, what, *row, freedom=rounds - 1) for row in rows)


def worst(lines: Iterator[Line]) -> Line:
    """Return the line farthest from its exact value; NaN is the farthest."""
    found = list(lines)
    last = max(found, key=lambda line: math.inf if math.isnan(line.deviation) else abs(line.deviation))
    return replace(last, worst_of=len(found))


class LinearGaussianVAE(nn.Module):
    r"""A linear-Gaussian VAE with a guide that is wrong by known amounts.

    .. math:: q(z|x) = N(m(x) + d\, L 1,\ c^2 L L^\top), \quad p(z|x) = N(m(x), L L^\top)

    The posterior p(z|x) has the mean m(x), and L is the Cholesky factor of its covariance. The guide q has a shifted mean and
    a stretched covariance, so that with Z latent units, for every x,

    .. math:: KL(q \| p(z|x)) = Z \big(\tfrac12 (c^2 + d^2 - 1) - \log c\big)

    Args:
        shift: Shift d of the guide's mean.
        stretch: Stretch c of the guide's standard deviations.
        kind: ``"full"``: L is a full triangle. ``"units"``: L is diagonal, so q is a product of normals. ``"score"``: as
            ``"full"``, but without reparameterized draws.
    """

    def __init__(
        self, shift: float = 0.4, stretch: float = 1.25, kind: Literal["full", "units", "score"] = "full"
    ) -> None:
        super().__init__()
        self.kind, self.name = kind, f"reference{next(_NUMBERS)}"
        self.vae = LinearVAE((5,), 2).double()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(5, 2, generator=generator, dtype=torch.float64)
        if kind == "units":  # orthogonal columns: then the posterior's covariance is diagonal
            weight = torch.linalg.qr(weight).Q * torch.tensor([1.5, 0.8], dtype=torch.float64)
        with torch.no_grad():
            self.vae.weight.copy_(weight)
            self.vae.decoder.head.bias.copy_(torch.linspace(-1, 1, 5))
            self.vae.likelihood.log_scale.fill_(math.log(0.6))
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.log_stretch = nn.Parameter(torch.tensor(stretch, dtype=torch.float64).log())

    def model(self, x: Tensor) -> Tensor:
        """The VAE's model."""
        return self.vae.model(x)

    def guide(self, x: Tensor) -> Tensor:
        """The wrong guide.

        No gradient flows through the exact posterior, from which the guide is computed.
        """
        pyro.module(self.name, self._own)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.q(x))

    @property
    def _own(self) -> nn.Module:
        own = nn.Module()
        own.shift, own.log_stretch = self.shift, self.log_stretch
        return own

    def normal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the guide's mean and the Cholesky factor of its covariance.

        Returns:
            Mean, shape ``(..., 2)``; factor, shape ``(..., 2, 2)``.
        """
        with torch.no_grad():
            p = self.vae.exact_posterior(x)
        return p.mean + self.shift * p.scale_tril.sum(-1), self.log_stretch.exp() * p.scale_tril

    def q(self, x: Tensor) -> TorchDistributionMixin:
        """Return the distribution of the wrong guide, event shape ``(2,)``."""
        loc, root = self.normal(x)
        if self.kind == "units":
            return dist.Normal(loc, root.diagonal(dim1=-2, dim2=-1)).to_event(1)
        q = dist.MultivariateNormal(loc, scale_tril=root)
        return q.has_rsample_(False) if self.kind == "score" else q

    @property
    def kl(self) -> float:
        """KL(q || p(z|x)), nats."""
        d, c = float(self.shift.detach()), float(self.log_stretch.detach().exp())
        return self.vae.latent_dim * ((c**2 + d**2 - 1) / 2 - math.log(c))

    def rates(self, x: Tensor) -> Tensor:
        r"""Return KL(q || p(z)) of each latent unit, shape ``(B, 2)``, nats.

        .. math:: \tfrac12 (m_j^2 + s_j^2 - 1) - \log s_j

        Here :math:`m_j` and :math:`s_j` are mean and standard deviation of unit j. Exact only for the kind ``"units"``.
        """
        loc, root = self.normal(x)
        s = root.diagonal(dim1=-2, dim2=-1)
        return (loc.square() + s.square() - 1) / 2 - s.log()

    def rate(self, x: Tensor) -> Tensor:
        """Return KL(q || p(z)), shape ``(B,)``, nats."""
        loc, root = self.normal(x)
        trace = root.square().sum((-2, -1))
        return (loc.square().sum(-1) + trace - loc.shape[-1]) / 2 - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def elbo(self, x: Tensor) -> Tensor:
        """Return the exact ELBO, log p(x) - KL(q || p(z|x)).

        Returns:
            Shape ``(B,)``, nats; differentiable.
        """
        q = dist.MultivariateNormal(self.normal(x)[0], scale_tril=self.normal(x)[1])
        return self.vae.log_px(x) - torch.distributions.kl_divergence(q, self.vae.exact_posterior(x))

    def expected(self, value: Callable[[Tensor], Tensor], num_draws: int, x: Tensor) -> Tensor:
        """Return the expectation of a function of K log weights.

        Computed by Gauss-Hermite quadrature with P nodes; differentiable.

        Args:
            value: Function that takes log weights of shape ``(K, P, B)`` and returns values of shape ``(P, B)``.
            num_draws: Number of weights, K.
            x: Data, shape ``(B, 5)``.

        Returns:
            The expectation for each datum, shape ``(B,)``, nats.
        """
        dim = self.vae.latent_dim
        grid, shares = hermite(num_draws * dim, NODES)
        loc, root = self.normal(x)
        z = loc + (root @ grid.reshape(-1, num_draws, 1, dim, 1).movedim(1, 0)).squeeze(-1)
        log_q = dist.MultivariateNormal(loc, scale_tril=root).log_prob(z)
        log_w = self.vae.prior().log_prob(z) + self.vae.decode(z).log_prob(x) - log_q
        return (shares[:, None] * value(log_w)).sum(0)


def hermite(dim: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights of Gauss-Hermite quadrature for N(0, I).

    Args:
        dim: Number of dimensions.
        nodes: Number of nodes in each dimension.

    Returns:
        P = ``nodes ** dim`` nodes, shape ``(P, dim)``; their weights, shape ``(P,)``, with sum 1.
    """
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[points] * dim).reshape(-1, dim)
    return grid, torch.cartesian_prod(*[weights / weights.sum()] * dim).reshape(-1, dim).prod(-1)
