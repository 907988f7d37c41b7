"""Every objective and estimator against the linear-Gaussian VAE, of which everything is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import evidence
from pyro_vae.inference.registry import OBJECTIVES, elbo
from pyro_vae.inference.weights import log_weights
from pyro_vae.models.linear import LinearVAE
from pyro_vae.randomness import own_randomness

#: Standard errors from the exact figure at which a line fails: about 4e-6 of all that are right.
LIMIT = 4.6
#: Draws of an importance-weighted bound, few enough for its expectation to be an integral that can be done.
K = 2
NODES = 12  # of the quadrature in each of K x Z dimensions
ROUNDING = 1e-9
STEPS = 200  # of annealing


@dataclass(frozen=True)
class Line:
    """One figure beside its exact value.

    Attributes:
        name: Of the objective or the estimator.
        what: What it found.
        exact: The exact value.
        found: The estimate.
        error: Its standard error; 0 where it is to be exact.
        side: -1 where it may be below the exact value, 1 above, as bounds may; 0 neither.
    """

    name: str
    what: str
    exact: float
    found: float
    error: float
    side: int = 0

    @property
    def deviation(self) -> float:
        """How far it is on the wrong side, in standard errors."""
        off = self.found - self.exact
        if self.side and off * self.side > 0:
            return 0.0
        error = max(self.error, ROUNDING)
        return off / error

    @property
    def right(self) -> bool:
        """Whether that is at most ``LIMIT``; not so without a number."""
        return abs(self.deviation) <= LIMIT and math.isfinite(self.error)

    def __str__(self) -> str:
        sign = {-1: ">=", 0: " =", 1: "<="}[self.side]
        words = f"{'ok  ' if self.right else 'FAIL'} {self.name:<30} {self.what:<26} {sign}"
        return f"{words} {self.exact:>10.4f} {self.found:>11.4f} {self.error:>9.1e} {self.deviation:>8.1f}"


HEADER = f"     {'':<30} {'':<26} {'exact':>13} {'found':>11} {'s.e.':>9} {'off/s.e.':>8}"


class Yardstick(nn.Module):
    r"""A linear-Gaussian VAE with a guide that is wrong by known amounts.

    .. math:: q(z|x) = N(m(x) + d\, L 1,\ c^2 L L^\top), \quad p(z|x) = N(m(x), L L^\top)

    so that :math:`KL(q \| p(z|x)) = Z \big(\tfrac12 (c^2 + d^2 - 1) - \log c\big)`, whatever x.

    Args:
        shift: d.
        stretch: c.
    """

    def __init__(self, shift: float = 0.4, stretch: float = 1.25) -> None:
        super().__init__()
        self.vae = LinearVAE((5,), 2).double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.vae.weight.copy_(torch.randn(5, 2, generator=generator, dtype=torch.float64))
            self.vae.decoder.head.bias.copy_(torch.linspace(-1, 1, 5))  # type: ignore[union-attr, operator]
            self.vae.likelihood.log_scale.fill_(math.log(0.6))
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.log_stretch = nn.Parameter(torch.tensor(stretch, dtype=torch.float64).log())

    def model(self, x: Tensor) -> Any:
        """The VAE's model."""
        return self.vae.model(x)

    def guide(self, x: Tensor) -> Any:
        """The wrong guide; the posterior it is made from is held fixed."""
        pyro.module(f"yardstick{id(self)}", self._own)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.q(x))

    @property
    def _own(self) -> nn.Module:
        own = nn.Module()
        own.shift, own.log_stretch = self.shift, self.log_stretch
        return own

    def q(self, x: Tensor) -> dist.MultivariateNormal:
        """The wrong guide's distribution, event shape ``(2,)``."""
        with torch.no_grad():
            p = self.vae.exact_posterior(x)
        loc = p.mean + self.shift * p.scale_tril.sum(-1)
        return dist.MultivariateNormal(loc, scale_tril=self.log_stretch.exp() * p.scale_tril)

    @property
    def kl(self) -> float:
        """KL(q || p(z|x)), nats."""
        d, c = float(self.shift.detach()), float(self.log_stretch.detach().exp())
        return self.vae.latent_dim * ((c**2 + d**2 - 1) / 2 - math.log(c))

    def expected(self, value: Callable[[Tensor], Tensor], num_draws: int, x: Tensor) -> Tensor:
        """The expectation of a function of the log weights of K draws, by Gauss-Hermite quadrature; differentiable.

        Args:
            value: Log weights, shape ``(K, P, B)``, to shape ``(P, B)``.
            num_draws: K.
            x: Data, shape ``(B, 5)``.

        Returns:
            Shape ``(B,)``, nats.
        """
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(NODES))
        dim = num_draws * self.vae.latent_dim
        grid = torch.cartesian_prod(*[nodes] * dim).reshape(-1, num_draws, 1, self.vae.latent_dim).movedim(1, 0)
        shares = torch.cartesian_prod(*[weights / weights.sum()] * dim).reshape(-1, dim).prod(-1)
        q = self.q(x)
        z = q.mean + (q.scale_tril @ grid[..., None]).squeeze(-1)
        log_w = self.vae.prior().log_prob(z) + self.vae.decode(z).log_prob(x) - q.log_prob(z)
        return (shares[:, None] * value(log_w)).sum(0)


def _log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _thermodynamic(log_w: Tensor) -> Tensor:
    points = elbo("tvo", num_particles=K).points
    return torch.stack([(b - a) * ((a * log_w).softmax(0) * log_w).sum(0) for a, b in pairwise(points)]).sum(0)


@dataclass(frozen=True)
class Case:
    """What an objective's bound and gradient are in expectation.

    Attributes:
        value: The bound as a function of the log weights, from its definition.
        draws: Of how many draws.
        options: Of the objective.
        gradient: Of which its gradient is: ``"all"`` parameters, those of the ``"model"``, or ``""``, of none.
    """

    value: Callable[[Tensor], Tensor]
    draws: int = K
    options: tuple[tuple[str, Any], ...] = (("num_particles", K),)
    gradient: str = "all"


def _mean(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


CASES: dict[str, Case] = {
    **{name: Case(_mean, 1, ()) for name in ("trace", "mean-field", "graph", "stl")},
    **{name: Case(_log_mean_exp) for name in ("iwae", "vimco", "dreg")},
    "renyi": Case(lambda w: 2 * _log_mean_exp(w / 2), options=(("alpha", 0.5), ("num_particles", K))),
    "miwae": Case(_log_mean_exp, options=(("num_groups", 3), ("num_particles", K))),
    "ciwae": Case(lambda w: 0.5 * _mean(w) + 0.5 * _log_mean_exp(w)),
    "piwae": Case(_log_mean_exp, options=(("num_groups", 1), ("num_particles", K))),
    "rws": Case(_log_mean_exp, gradient="model"),
    "tvo": Case(_thermodynamic, gradient=""),
}
#: With nothing to enumerate it is "trace"; tests/inference sum over labels.
LEFT_OUT = {"enum"}


def objectives(yardstick: Yardstick, x: Tensor, rounds: int) -> Iterator[Line]:
    """Each objective's bound, and the gradient it trains by, beside their expectations."""
    for name in OBJECTIVES:
        if name in LEFT_OUT:
            continue
        case = CASES[name]
        objective = elbo(name, **dict(case.options))
        exact = yardstick.expected(case.value, case.draws, x)
        with torch.no_grad():
            found = torch.stack([objective.bound(yardstick.model, yardstick.guide, x) for _ in range(rounds)])
        off = found - exact.detach()
        error = float(off.std()) / math.sqrt(off.numel())
        yield Line(name, "bound, nats", float(exact.detach().mean()), float(found.mean()), error)
        if case.gradient:
            yield _gradient(name, case.gradient, objective, yardstick, x, exact, rounds)


def _gradient(
    name: str, whose: str, objective: Any, yardstick: Yardstick, x: Tensor, bound: Tensor, rounds: int
) -> Line:
    """The coordinate of the gradient that is farthest off, over model and guide."""
    leaves = list((yardstick.vae if whose == "model" else yardstick).parameters())

    def flat(loss: Tensor) -> Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves)])

    exact = flat(-bound.sum())
    losses = (objective.differentiable_loss(yardstick.model, yardstick.guide, x) for _ in range(rounds))
    found = torch.stack([flat(loss) for loss in losses])
    error = found.std(0) / math.sqrt(rounds)
    lines = [
        Line(name, f"gradient, worst of {len(exact)}", float(right), float(mean), float(off))
        for right, mean, off in zip(exact, found.mean(0), error, strict=True)
    ]
    return max(lines, key=lambda line: abs(line.deviation))


def estimators(yardstick: Yardstick, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    """Each estimator of log p(x) beside log p(x), means over the data."""
    model, guide, vae = yardstick.model, yardstick.guide, yardstick.vae
    exact = float(vae.log_px(x).mean().detach())
    what = "log p(x), nats"
    weights = (log_weights(model, guide, x, num_samples=num_samples) - vae.log_px(x)).detach().exp()
    yield Line("log_weights", "mean of w / p(x)", 1.0, float(weights.mean()), _error(weights))
    draws = log_weights(vae.model, vae.guide, x, num_samples=10).detach()
    worst = float((draws - vae.log_px(x).detach()).abs().max())
    yield Line("log_weights, exact posterior", "largest |log w - log p(x)|", 0.0, worst, 0.0)
    found = evidence.importance_sampling(model, guide, x, num_samples=num_samples, seed=seed).summary()
    yield Line("importance_sampling", what, exact, found.log_px, _known(found.mc_error))
    error = math.hypot(_known(found.elbo_mc_error), _known(found.mc_error))
    yield Line("importance_sampling", "gap = KL(q || posterior)", yardstick.kl, found.gap, error)
    naive = evidence.prior_sampling(model, x, num_samples=20 * num_samples, seed=seed).summary()
    # A bound that may be far too low: its error is not known where the tail is heavy, and then counts as 0.
    yield Line("prior_sampling", what, exact, naive.log_px, naive.mc_error or 0.0, -1)
    refined = evidence.refined_importance_sampling(model, guide, x, num_samples=num_samples, steps=50, seed=seed)
    yield Line("refined_importance_sampling", what, exact, refined.summary().log_px, _known(refined.summary().mc_error))
    for start in ("prior", "guide"):
        chains = evidence.annealed_importance_sampling(
            model, guide, x, num_chains=16, num_steps=STEPS, start=start, seed=seed
        )
        # Log w is near a normal: Var(w) / p(x)^2 = exp(s^2) - 1.
        spread = chains.spread.square().expm1() / chains.num_samples
        error = float(spread.sum().sqrt()) / len(x)
        yield Line(f"annealed, from the {start}", what, exact, chains.summary().log_px, error)
    yield from _bracketed(yardstick, x, seed)


def _bracketed(yardstick: Yardstick, x: Tensor, seed: int) -> Iterator[Line]:
    """The two bounds of bidirectional Monte Carlo, on the data that it simulates."""
    bracket = evidence.bidirectional(
        yardstick.model, yardstick.guide, x, num_chains=16, num_steps=STEPS, start="guide", seed=seed
    )
    exact = float(yardstick.vae.log_px(bracket.args[0]).mean().detach())
    found = bracket.summary()
    yield Line("bidirectional, lower", "log p(x), nats", exact, found.lower, _known(found.lower_mc_error), -1)
    yield Line("bidirectional, upper", "log p(x), nats", exact, found.upper, _known(found.upper_mc_error), 1)


def _error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(values.numel())


def _known(error: float | None) -> float:
    return math.nan if error is None else error


def measure(num_samples: int = 512, seed: int = 0, rounds: int | None = None) -> Iterator[Line]:
    """Every objective and every estimator beside what is exact.

    Args:
        num_samples: Draws for each datum of an estimator.
        seed: Of all draws.
        rounds: How often an objective's bound and gradient are computed; None: as often, at most 300 times.

    Yields:
        The lines of the table.
    """
    with own_randomness(seed), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        yardstick = Yardstick()
        x = yardstick.vae.sample(8)
        yield from objectives(yardstick, x, rounds or min(num_samples, 300))
        yield from estimators(yardstick, x, num_samples, seed)
