r"""Annealed importance sampling of log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_vae.errors import check_counts, clear_data_errors
from pyro_vae.evidence.annealing.annealed_estimate import AnnealedEstimate
from pyro_vae.evidence.annealing.compiled import CapturedPath
from pyro_vae.evidence.annealing.hmc import Evaluate, evaluation, move, sum_dtype
from pyro_vae.evidence.annealing.path import AnnealingPath, Start
from pyro_vae.evidence.annealing.step_size import MAX_PILOT_CHAINS, Tuning, tune
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.system.randomness import seeded

Schedule = Literal["sigmoid", "geometric"]

Metric = Literal["diagonal", "unit"]

#: Number of draws that estimate the metric.
METRIC_DRAWS = 32


def beta_schedule(path: Schedule) -> Callable[[float], float]:
    r"""Make the schedule of beta along the annealing path.

    A place s on the path is a number from 0 (start) to 1 (posterior).

    ``"geometric"``: equal steps, :math:`\beta(s) = s`. ``"sigmoid"``: small steps at both ends,
    :math:`\beta(s) = (\sigma(\delta(2s - 1)) - \sigma(-\delta)) / (\sigma(\delta) - \sigma(-\delta))` with :math:`\delta = 4`.

    Args:
        path: ``"sigmoid"`` or ``"geometric"``.

    Returns:
        Function from a place to beta.

    Raises:
        ValueError: If ``path`` is unknown.

    References:
        Wu, Burda, Salakhutdinov, Grosse, "On the Quantitative Analysis of Decoder-Based Generative Models", 2017, section 5.
    """
    if path not in get_args(Schedule):
        raise ValueError(f"path: expected one of {list(get_args(Schedule))}, got {path!r}.")
    if path == "geometric":
        return lambda place: place
    span = math.tanh(2.0)
    return lambda place: (math.tanh(2.0 * (2 * place - 1)) / span + 1) / 2


class Chains(NamedTuple):
    """Result of moving C chains along the path, for B data.

    Attributes:
        log_w: Log weights, shape ``(C, B)``, float64, nats.
        u: U unconstrained latents at the end of the chains, shape ``(C, B, U)``.
        acceptance: Mean acceptance probability of the moves, shape ``(B,)``; NaN if there are no moves.
    """

    log_w: Tensor
    u: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Annealer:
    """Annealing of one batch by chains whose moves are tuned, then frozen.

    Attributes:
        path: Densities along the path.
        evaluate: Function that evaluates the densities and their gradients.
        beta: Function from a place on the path, 0 to 1, to beta.
        tuning: Step sizes of the moves and scales of the latents.
        num_steps: Number of steps, T.
        num_leapfrog: Number of leapfrog steps in one move, L.
    """

    path: AnnealingPath
    evaluate: Evaluate
    beta: Callable[[float], float]
    tuning: Tuning
    num_steps: int
    num_leapfrog: int

    @classmethod
    def tuned(
        cls,
        path: AnnealingPath,
        num_chains: int,
        num_steps: int,
        num_leapfrog: int = 5,
        schedule: Schedule = "sigmoid",
        metric: Metric = "diagonal",
        captured: CapturedPath | None = None,
    ) -> Annealer:
        """Tune the moves by a pilot and return the annealer.

        Args:
            path: Densities along the path.
            num_chains: Number of chains, C.
            num_steps: Number of steps, T.
            num_leapfrog: Number of leapfrog steps in one move, L.
            schedule: See :func:`beta_schedule`.
            metric: ``"diagonal"`` or ``"unit"``.
            captured: Compiler of the densities: one graph serves the pilot and all later runs, each with C chains. None: the
                densities are evaluated eagerly.
        """
        beta, (start, end) = beta_schedule(schedule), _variances(path, metric)
        u = path.draw(min(num_chains, MAX_PILOT_CHAINS) if captured is None else num_chains)
        evaluate = evaluation(path.terms) if captured is None else captured(path, u)
        tuning = tune(evaluate, u, beta, start, end, num_leapfrog, num_steps)
        return cls(path, evaluate, beta, tuning, num_steps, num_leapfrog)

    def run(self, u: Tensor, forward: bool = True) -> Chains:
        r"""Move chains along the path and compute each chain's log weight.

        .. math:: \log w = \textstyle\sum_{t=1}^T (\beta_t - \beta_{t-1})\, b(u_{t-1})

        b is the slope of the log density in beta. Forward, u_0 is a draw from the start, and u_t comes from u_{t-1} by a move
        at beta_t. Backward, u_{T-1} is a draw from the posterior, and the same moves are made in the opposite order: each move
        is its own reverse.

        Args:
            u: Unconstrained latents at the beginning of the chains, shape ``(C, B, U)``.
            forward: True: from start to posterior; False: from posterior to start.
        """
        betas = [self.beta(t / self.num_steps) for t in range(self.num_steps + 1)]
        order = range(1, self.num_steps + 1) if forward else range(self.num_steps, 0, -1)
        state = self.evaluate(u)
        log_w = torch.zeros_like(state.slope, dtype=sum_dtype(u.device))
        accepted = torch.zeros_like(log_w[0])
        for t in order:
            log_w += (betas[t] - betas[t - 1]) * state.slope
            stop = t if forward else t - 1
            if 0 < stop < self.num_steps:
                step, scale = self.tuning.step_size(stop / self.num_steps), self.tuning.scale(betas[stop])
                state, probability = move(self.evaluate, state, betas[stop], step, scale, self.num_leapfrog)
                accepted += probability.mean(0)
        acceptance = accepted / (self.num_steps - 1) if self.num_steps > 1 else accepted * math.nan
        return Chains(log_w, state.u, acceptance)

    @property
    def step_size(self) -> Tensor:
        """Geometric mean of each datum's step sizes over the path, shape ``(B,)``."""
        return self.tuning.log_steps.mean(0).exp()

    def lower_bound(self, chains: Chains) -> AnnealedEstimate:
        """Estimate log p(x) from forward chains."""
        likelihood = self.path.log_likelihood(chains.u)
        log_w = chains.log_w.to(likelihood.dtype)
        return AnnealedEstimate.from_chains(log_w, likelihood, chains.acceptance, self.step_size, self.num_steps)


def _variances(path: AnnealingPath, metric: Metric) -> tuple[Tensor, Tensor]:
    """Compute the variances of the latents at both ends of the path.

    The variances at the posterior are unknown; those of the guide are used instead. The unit metric has variances of 1.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric: expected one of {list(get_args(Metric))}, got {metric!r}.")
    start = path.draw(METRIC_DRAWS)
    if metric == "unit":
        return torch.ones_like(start[0]), torch.ones_like(start[0])
    v0 = start.var(0)
    v1 = v0 if path.start == "guide" else path.draw(METRIC_DRAWS, "guide").var(0)
    return v0, torch.where(v1 > 1e-10 * v0, v1, v0)  # a guide without spread gives no metric


@clear_data_errors
@torch.no_grad()
def annealed_importance_sampling(
    model: Program,
    guide: Program | None,
    *args: object,
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
) -> AnnealedEstimate:
    r"""Estimate log p(x) of each datum by annealed importance sampling.

    .. math:: \log w = \textstyle\sum_{t=1}^T (\beta_t - \beta_{t-1})\, \log \frac{p(x, z_{t-1})}{f_0(z_{t-1})}, \quad
        f_\beta \propto f_0^{1 - \beta}\, p(x, z)^\beta, \quad \widehat{\log p}(x) = \log \tfrac1C \textstyle\sum_c w_c

    Chains go from a start to the posterior: z_0 is a draw from the start f_0, and z_t comes from z_{t-1} by a Hamiltonian move
    that leaves f at beta_t invariant. E[w] = p(x) whatever the moves are, so the estimate is a stochastic lower bound. It rises
    to log p(x) as the number of steps grows, and does not need a guide that fits.

    All chains of all data move together, as one batch of chains * data rows. To bound memory, pass the data in batches and join
    the estimates by ``AnnealedEstimate.cat``. A discarded pilot of at most 8 chains (C chains if compiled) tunes the step size
    of each datum at each place on the path; then the step sizes are frozen. Latents with a restricted support are mapped to the
    real numbers by a bijection. The rest of a batch changes the draws of an estimate, not only its rounding.

    Args:
        model: A Pyro model with all latents in one plate. Each latent is continuous, or discrete and marked
            ``infer={"enumerate": "parallel"}`` in model or guide; a marked site is summed out of every density exactly.
        guide: The guide of the model; None is allowed if ``start`` is ``"prior"``. The guide also sets the metric near the
            posterior.
        *args: Positional arguments of model and guide.
        num_chains: Number of chains C for each datum.
        num_steps: Number of steps T from start to posterior. The cost is C T L gradients for each datum.
        start: f_0, ``"prior"`` or ``"guide"``; the guide must have a density.
        path: Spacing of beta, ``"sigmoid"`` or ``"geometric"``, see :func:`beta_schedule`.
        num_leapfrog: Number of leapfrog steps L in one move.
        metric: ``"diagonal"``: moves in units of the latents' standard deviations under start and guide; ``"unit"``: in the
            units of the latents.
        compile: Compile the densities and their gradients; a :class:`CapturedPath` shares its graphs between batches.
        seed: Seed of the draws, at least 0, which leaves torch's generators unchanged; None: draw from torch's generators.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        The estimate of each datum.

    Raises:
        ValueError: If model and guide have no weights for each datum (see ``log_weights``), a latent site is discrete and
            not marked, the start is a guide without a density, or a number is below 1.

    References:
        Neal, "Annealed importance sampling", 2001; Wu, Burda, Salakhutdinov, Grosse, "On the Quantitative Analysis of
        Decoder-Based Generative Models", 2017.
    """
    check_counts(num_chains=num_chains, num_steps=num_steps, num_leapfrog=num_leapfrog)
    check_counts(0, seed=seed)
    with seeded(seed):
        densities = AnnealingPath(model, guide, args, kwargs, start, plate, outer_scale)
        captured = CapturedPath() if compile is True else compile or None
        annealer = Annealer.tuned(densities, num_chains, num_steps, num_leapfrog, path, metric, captured)
        return annealer.lower_bound(annealer.run(densities.draw(num_chains)))
