"""Bidirectional Monte Carlo: lower and upper bounds on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.errors import check_counts, clear_data_errors
from pyro_vae.evidence.annealing.annealed import Annealer, Metric, Schedule
from pyro_vae.evidence.annealing.annealed_estimate import AnnealedEstimate
from pyro_vae.evidence.annealing.compiled import CapturedPath
from pyro_vae.evidence.annealing.hmc import move
from pyro_vae.evidence.annealing.path import AnnealingPath, Start
from pyro_vae.evidence.simulation import Simulated, simulate
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.system.randomness import seeded

__all__ = ["Bracket", "BracketSummary", "Simulated", "UpperBound", "bidirectional", "simulate"]

T = TypeVar("T")

#: Moves at the posterior before chains go backward: they spread the chains of a datum from their common draw.
SPREADING_MOVES = 10


@dataclass(frozen=True)
class UpperBound:
    r"""Stochastic upper bound on log p(x) from chains that go backward.

    .. math:: \widehat{\log p}(x) = -\log \tfrac1C \textstyle\sum_c w_c^{-1}, \quad E[w^{-1}] = 1 / p(x)

    w_c is the weight of chain c. The bound is biased high, whatever the number of chains C is, by about Var(1/w)
    p(x)^2 / (2 C).

    Attributes:
        inverse: Estimate of -log p(x) from the same chains, with weights 1/w. The errors, ESS, Pareto k and acceptance of this
            estimate hold for the bound too. Tensors have shape ``(B,)`` on the CPU.
    """

    inverse: AnnealedEstimate

    @property
    def log_px(self) -> Tensor:
        """The bound, shape ``(B,)``, nats; at least log p(x) in expectation."""
        return -self.inverse.log_px

    @property
    def std_error(self) -> Tensor:
        """Monte Carlo standard error of the bound, shape ``(B,)``, nats.

        The error is NaN where it cannot be trusted. It is often too small, by a fifth or more: it treats chains that began at
        one posterior draw as independent, and a small number of chains seldom includes the draws that raise 1/w. The scatter of
        the bound over data does not have this fault.
        """
        return self.inverse.std_error

    @property
    def bias(self) -> Tensor:
        """Estimated bias of the bound, std_error^2 / 2, shape ``(B,)``, nats.

        NaN where ``std_error`` is NaN.
        """
        return -self.inverse.bias

    @property
    def reliable(self) -> Tensor:
        """True where the error can be trusted, shape ``(B,)``, bool."""
        return self.inverse.reliable

    @property
    def acceptance(self) -> Tensor:
        """Mean acceptance probability of the moves, shape ``(B,)``."""
        return self.inverse.acceptance


@dataclass(frozen=True)
class BracketSummary:
    """Means of a :class:`Bracket` over N data, in nats per datum.

    Attributes:
        lower: Mean of the lower bounds.
        upper: Mean of the upper bounds.
        gap: ``upper`` - ``lower``: the mean log p(x) lies between the bounds, up to their errors.
        gap_std_error: Standard error of ``gap`` from its scatter over data, which includes the Monte Carlo errors of both
            bounds. None at N = 1.
        lower_mc_error: Monte Carlo standard error of ``lower``; None if the error of any datum is unknown.
        upper_mc_error: Monte Carlo standard error of ``upper``; None if the error of any datum is unknown.
        lower_bound: ``lower`` - log(20) / N. The mean of log p(x) over these data is above this bound with probability 0.95,
            by Markov's inequality.
        upper_bound: ``upper`` + log(20) / N. The mean of log p(x) over these data is below this bound with probability 0.95,
            by Markov's inequality.
        acceptance: Mean acceptance probability of the forward chains.
        reverse_acceptance: Mean acceptance probability of the backward chains.
        num_chains: Number of chains, C.
        num_steps: Number of steps, T.
        num_data: Number of data, N.
    """

    lower: float
    upper: float
    gap: float
    gap_std_error: float | None
    lower_mc_error: float | None
    upper_mc_error: float | None
    lower_bound: float
    upper_bound: float
    acceptance: float
    reverse_acceptance: float
    num_chains: int
    num_steps: int
    num_data: int


@dataclass(frozen=True)
class Bracket:
    """Stochastic lower and upper bound on log p(x) of each datum.

    Attributes:
        lower: Lower bound, from chains that go forward from the start.
        upper: Upper bound, from chains that go backward from the posterior.
        args: Positional arguments of the model, with the data x that the bounds are for: simulated data, unless posterior draws
            were given.
        kwargs: Keyword arguments of the model, with the same data.
    """

    lower: AnnealedEstimate
    upper: UpperBound
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound, shape ``(B,)``, nats.

        The gap is at least 0 in expectation, but chance can make it negative.
        """
        return self.upper.log_px - self.lower.log_px

    @classmethod
    def cat(cls, parts: Sequence[Bracket]) -> Bracket:
        """Join the brackets of several batches.

        Tensor arguments of the model that have a row for each datum are joined. The rest of the arguments come from the first
        batch.

        Args:
            parts: One bracket for each batch.

        Raises:
            ValueError: If ``parts`` is empty.
        """
        if not parts:
            raise ValueError("cat: expected at least one bracket, got none; bracket some data first.")
        sizes = [len(part.gap) for part in parts]

        def join(*leaves: T) -> T | Tensor:
            tensors: list[Tensor] = [x for x in leaves if isinstance(x, Tensor) and x.dim()]
            return torch.cat(tensors) if list(map(len, tensors)) == sizes else leaves[0]

        args, kwargs = _pytree.tree_map(join, *[(part.args, part.kwargs) for part in parts])
        lower = AnnealedEstimate.cat([part.lower for part in parts])
        return cls(lower, UpperBound(AnnealedEstimate.cat([part.upper.inverse for part in parts])), args, kwargs)

    def summary(self) -> BracketSummary:
        """Average the bounds over data, with errors of the averages."""
        num, gap = len(self.gap), self.gap
        lower, upper = self.lower.summary(), self.upper.inverse.summary()
        return BracketSummary(
            lower=lower.log_px,
            upper=-upper.log_px,
            gap=float(gap.mean()),
            gap_std_error=float(gap.std() / math.sqrt(num)) if num > 1 else None,
            lower_mc_error=lower.mc_error,
            upper_mc_error=upper.mc_error,
            lower_bound=lower.lower_bound,
            upper_bound=-upper.lower_bound,
            acceptance=float(self.lower.acceptance.mean()),
            reverse_acceptance=float(self.upper.acceptance.mean()),
            num_chains=self.lower.num_samples,
            num_steps=self.lower.num_steps,
            num_data=num,
        )


@clear_data_errors
@torch.no_grad()
def bidirectional(
    model: Program,
    guide: Program | None,
    *args: object,
    posterior_draws: Mapping[str, Tensor] | None = None,
    num_chains: int = 16,
    num_steps: int = 500,
    start: Start = "prior",
    path: Schedule = "sigmoid",
    num_leapfrog: int = 5,
    metric: Metric = "diagonal",
    compile: bool | CapturedPath = False,
    seed: int | None = None,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    **kwargs: object,
) -> Bracket:
    r"""Bound log p(x) from both sides by bidirectional Monte Carlo.

    .. math:: E\, \log \tfrac1C \textstyle\sum_c w_c \;\le\; \log p(x) \;\le\;
        E\left[-\log \tfrac1C \textstyle\sum_c 1 / \tilde w_c\right]

    The lower bound is annealed importance sampling with C chains of weight :math:`w_c`. The upper bound is its reverse:
    :math:`\tilde w_c` is the weight of a chain that begins at an exact draw from the posterior and makes the moves of the path
    in the opposite order. For data simulated from the model, such a draw is known: the latents z that generated x. With a
    trained model, the bracket on simulated data shows how well annealing works on data like the model's own.

    All chains of a datum begin at its one posterior draw and spread by ten moves at the posterior before they go backward. If
    the chains spread poorly, the mean of the upper bound over data stays valid, but its error for a single datum does not.

    Args:
        model: See :func:`annealed_importance_sampling`.
        guide: See :func:`annealed_importance_sampling`.
        *args: Positional arguments of model and guide. Without ``posterior_draws``, only the shapes of the data matter, see
            :func:`simulate`.
        posterior_draws: Draws from p(z|x) of the given data, by the name of the latent site, in the shape that the model draws,
            with or without a leading dimension of chains; None: simulate data.
        num_chains: Number of chains C in each direction.
        num_steps: Number of steps, T.
        start: See :func:`annealed_importance_sampling`.
        path: See :func:`annealed_importance_sampling`.
        num_leapfrog: See :func:`annealed_importance_sampling`.
        metric: See :func:`annealed_importance_sampling`.
        compile: See :func:`annealed_importance_sampling`.
        seed: See :func:`annealed_importance_sampling`; it also seeds the simulated data.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        **kwargs: Keyword arguments of model and guide. They may hold data, like ``args``.

    Returns:
        The bracket of each datum.

    Raises:
        ValueError: See :func:`annealed_importance_sampling` and :func:`simulate`. Also if ``posterior_draws`` lack a site, or
            have another shape or number of chains.

    References:
        Grosse, Ancha, Roy, "Measuring the reliability of MCMC inference with bidirectional Monte Carlo", 2016; Wu et al., "On
        the Quantitative Analysis of Decoder-Based Generative Models", 2017, section 4.2.
    """
    check_counts(num_chains=num_chains, num_steps=num_steps, num_leapfrog=num_leapfrog)
    check_counts(0, seed=seed)
    with seeded(seed):
        given = Simulated(args, kwargs, dict(posterior_draws or {}))
        if posterior_draws is None:
            given = simulate(model, *args, **kwargs)
        densities = AnnealingPath(model, guide, given.args, given.kwargs, start, plate, outer_scale)
        u = _expand_to_chains(densities.pack(given.latents), num_chains)
        captured = CapturedPath() if compile is True else compile or None
        annealer = Annealer.tuned(densities, num_chains, num_steps, num_leapfrog, path, metric, captured)
        lower = annealer.lower_bound(annealer.run(densities.draw(num_chains)))
        return Bracket(lower, backward(annealer, u), given.args, given.kwargs)


def backward(annealer: Annealer, u: Tensor) -> UpperBound:
    """Compute the upper bound by chains that run backward.

    Args:
        annealer: Annealer with tuned moves.
        u: Draws from the posterior, shape ``(C, B, U)``.
    """
    tuning, state = annealer.tuning, annealer.evaluate(u)
    for _ in range(SPREADING_MOVES):
        state, _ = move(annealer.evaluate, state, 1.0, tuning.step_size(1.0), tuning.scale(1.0), annealer.num_leapfrog)
    likelihood = annealer.path.log_likelihood(state.u)
    log_w, _, acceptance = annealer.run(state.u, forward=False)
    log_inverse = -log_w.to(likelihood.dtype)
    return UpperBound(
        AnnealedEstimate.from_chains(log_inverse, -likelihood, acceptance, annealer.step_size, annealer.num_steps)
    )


def _expand_to_chains(u: Tensor, num_chains: int) -> Tensor:
    if len(u) not in (1, num_chains):
        raise ValueError(
            f"posterior_draws: expected one draw for each datum, or one for each of {num_chains} chains, got {len(u)}; pass "
            f"num_chains={len(u)}."
        )
    return u.expand(num_chains, -1, -1)
