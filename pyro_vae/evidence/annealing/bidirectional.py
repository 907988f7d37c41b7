r"""Bounds on log p(x) from both sides, for data whose posterior can be drawn from exactly: data that the model made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.errors import check_counts, clear_data_errors
from pyro_vae.evidence.annealing.annealed import Annealer, Metric, Path
from pyro_vae.evidence.annealing.annealed_estimate import AnnealedEstimate
from pyro_vae.evidence.annealing.compiled import CapturedPath
from pyro_vae.evidence.annealing.hmc import move
from pyro_vae.evidence.annealing.path import AnnealingPath, Start
from pyro_vae.evidence.simulation import Simulated, simulate
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.system.randomness import own_randomness

__all__ = ["Bracket", "BracketSummary", "Simulated", "UpperBound", "bidirectional", "simulate"]

#: Moves at the posterior before the chains go backward, so that those of a datum part from their common draw.
PARTING_MOVES = 10


@dataclass(frozen=True)
class UpperBound:
    r"""Log p(x) from above by chains that go backward; tensors of shape ``(B,)``, CPU.

    .. math:: \widehat{\log p}(x) = -\log \tfrac1C \textstyle\sum_c w_c^{-1}, \quad E[w^{-1}] = 1 / p(x)

    A stochastic upper bound, whatever C: biased high by about Var(1/w) p(x)^2 / (2 C).

    Attributes:
        inverse: The same chains as an estimate of -log p(x), of weights 1/w; what it says of errors, ESS, Pareto k
            and acceptance holds here.
    """

    inverse: AnnealedEstimate

    @property
    def log_px(self) -> Tensor:
        """The bound, nats: at least log p(x) in expectation."""
        return -self.inverse.log_px

    @property
    def std_error(self) -> Tensor:
        """Its Monte Carlo standard error, nats; NaN where it would say nothing.

        Chains that began at one posterior draw are taken for independent, and few of them seldom show the draws that would
        raise 1/w: it is often too small by a fifth or more. The scatter of the bound over data has no such fault.
        """
        return self.inverse.std_error

    @property
    def bias(self) -> Tensor:
        """Estimate of its bias, std_error^2 / 2, nats; NaN where ``std_error`` is."""
        return -self.inverse.bias

    @property
    def reliable(self) -> Tensor:
        """Where the error can be believed: bool."""
        return self.inverse.reliable

    @property
    def acceptance(self) -> Tensor:
        """Mean probability with which a move was taken."""
        return self.inverse.acceptance


@dataclass(frozen=True)
class BracketSummary:
    r"""A bracket's means over N data, nats per datum.

    Attributes:
        lower: Mean of the lower bounds.
        upper: Mean of the upper bounds.
        gap: Their difference: the mean log p(x) lies within, up to the errors.
        gap_std_error: Standard error of the mean gap, from its scatter over data, in which all Monte Carlo is. None at N = 1.
        lower_mc_error: Monte Carlo standard error of ``lower``; None if any datum's is not known.
        upper_mc_error: That of ``upper``, likewise.
        lower_bound: log p(x) averaged over these data is above this with probability 0.95: ``lower`` less log(20) / N.
        upper_bound: It is below this with probability 0.95: ``upper`` and log(20) / N (Markov's inequality, both).
        acceptance: Mean acceptance of the forward chains.
        reverse_acceptance: Mean acceptance of the backward chains.
        num_chains: C.
        num_steps: T.
        num_data: N.
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
    """Log p(x) of each datum between two stochastic bounds.

    Attributes:
        lower: From chains that go forward from the start.
        upper: From chains that go backward from the posterior.
        args: The positional arguments for which it holds: with simulated data, unless posterior draws were given.
        kwargs: The keyword arguments, likewise.
    """

    lower: AnnealedEstimate
    upper: UpperBound
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def gap(self) -> Tensor:
        """Upper less lower bound, shape ``(B,)``, nats: at least 0 in expectation, though not at every draw."""
        return self.upper.log_px - self.lower.log_px

    @classmethod
    def cat(cls, parts: Sequence[Bracket]) -> Bracket:
        """The brackets of several batches as one; of arguments, tensors with a row for each datum are joined.

        Raises:
            ValueError: If there are none.
        """
        if not parts:
            raise ValueError("cat: expected at least one bracket, got none; bracket some data first.")
        sizes = [len(part.gap) for part in parts]

        def joined(*leaves: Any) -> Any:
            rows = [len(x) if isinstance(x, Tensor) and x.dim() else None for x in leaves]
            return torch.cat(leaves) if rows == sizes else leaves[0]

        args, kwargs = _pytree.tree_map(joined, *[(part.args, part.kwargs) for part in parts])
        lower = AnnealedEstimate.cat([part.lower for part in parts])
        return cls(lower, UpperBound(AnnealedEstimate.cat([part.upper.inverse for part in parts])), args, kwargs)

    def summary(self) -> BracketSummary:
        """Means over data, with their errors."""
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
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: object,
    posterior_draws: Mapping[str, Tensor] | None = None,
    num_chains: int = 16,
    num_steps: int = 500,
    start: Start = "prior",
    path: Path = "sigmoid",
    num_leapfrog: int = 5,
    metric: Metric = "diagonal",
    compile: bool | CapturedPath = False,
    seed: int | None = None,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    **kwargs: object,
) -> Bracket:
    r"""Bidirectional Monte Carlo: log p(x) between annealed importance sampling from below and its reverse from above.

    .. math:: E\, \log \tfrac1C \textstyle\sum_c w_c \;\le\; \log p(x) \;\le\;
        E\left[-\log \tfrac1C \textstyle\sum_c 1 / \tilde w_c\right]

    :math:`\tilde w` is the weight of a chain that begins at an exact draw of the posterior and makes the path's moves in the
    opposite order. Such a draw is known for data that the model made, z with x; with trained models the bracket
    on them says how well annealing does on data like the model's own.

    All chains of a datum begin at its one posterior draw, and are then parted by ten moves there. The mean over data of the
    upper bound is independent of how well that went; its per-datum error is not.

    Args:
        model: See :func:`annealed_importance_sampling`.
        guide: Likewise.
        *args: What both take; without ``posterior_draws`` only the shapes of the data matter, see :func:`simulate`.
        posterior_draws: z of each latent site drawn from p(z|x) of the data given, in the shape in which the model draws it,
            or with a dimension for chains in front; None: data are simulated.
        num_chains: C, in each direction.
        num_steps: T.
        start: See :func:`annealed_importance_sampling`.
        path: Likewise.
        num_leapfrog: Likewise.
        metric: Likewise.
        compile: Likewise.
        seed: Likewise, of simulated data too.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        **kwargs: As ``args``.

    Returns:
        The bracket of each datum.

    Raises:
        ValueError: As :func:`annealed_importance_sampling` and :func:`simulate`, and if ``posterior_draws`` do not fit.

    References:
        Grosse, Ancha, Roy, "Measuring the reliability of MCMC inference with bidirectional Monte Carlo", 2016; Wu et al., "On
        the Quantitative Analysis of Decoder-Based Generative Models", 2017, section 4.2.
    """
    check_counts(num_chains=num_chains, num_steps=num_steps, num_leapfrog=num_leapfrog)
    with own_randomness(seed) if seed is not None else nullcontext():
        given = Simulated(args, kwargs, dict(posterior_draws or {}))
        if posterior_draws is None:
            given = simulate(model, *args, **kwargs)
        joint = AnnealingPath(model, guide, given.args, given.kwargs, start, plate, outer_scale)
        u = _of_chains(joint.pack(given.latents), num_chains)
        captured = CapturedPath() if compile is True else compile or None
        annealer = Annealer.tuned(joint, num_chains, num_steps, num_leapfrog, path, metric, captured)
        return Bracket(annealer.estimate(num_chains), backward(annealer, u), given.args, given.kwargs)


def backward(annealer: Annealer, u: Tensor) -> UpperBound:
    """The upper bound, from posterior draws ``u`` of shape ``(C, B, U)``."""
    tuning, state = annealer.tuning, annealer.evaluate(u)
    for _ in range(PARTING_MOVES):
        state, _ = move(annealer.evaluate, state, 1.0, tuning.step_size(1.0), tuning.scale(1.0), annealer.num_leapfrog)
    likelihood = annealer.joint.sums(state.u)["likelihood"].detach()
    log_w, _, acceptance = annealer.run(state.u, forward=False)
    inverse = -log_w.to(likelihood.dtype)
    return UpperBound(
        AnnealedEstimate.from_chains(inverse, -likelihood, acceptance, annealer.step_size, annealer.num_steps)
    )


def _of_chains(u: Tensor, num_chains: int) -> Tensor:
    if len(u) not in (1, num_chains):
        raise ValueError(
            f"posterior_draws: expected one for each datum or one for each of {num_chains} chains, got {len(u)}; pass "
            f"num_chains={len(u)}."
        )
    return u.expand(num_chains, -1, -1)
