r"""Annealed importance sampling of log p(x): from a start to the posterior by way of many densities between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.errors import check_counts, clear_data_errors
from pyro_vae.evidence.annealing.annealed_estimate import AnnealedEstimate
from pyro_vae.evidence.annealing.compiled import CapturedPath
from pyro_vae.evidence.annealing.hmc import Evaluate, evaluation, move, widest
from pyro_vae.evidence.annealing.path import AnnealingPath, Start
from pyro_vae.evidence.annealing.step_size import PILOT_CHAINS, Tuning, tune
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.system.randomness import own_randomness

Path = Literal["sigmoid", "geometric"]


Metric = Literal["diagonal", "unit"]


#: Draws from which the metric is estimated.
METRIC_DRAWS = 32


def beta_of(path: Path) -> Callable[[float], float]:
    r"""The place of each step on the path, from 0 to 1, to beta.

    ``"geometric"``: equal steps, :math:`\beta(s) = s`. ``"sigmoid"``: small steps at both ends,
    :math:`\beta(s) = (\sigma(\delta(2s - 1)) - \sigma(-\delta)) / (\sigma(\delta) - \sigma(-\delta))` with :math:`\delta = 4`.

    Raises:
        ValueError: If there is no such path.

    References:
        Wu, Burda, Salakhutdinov, Grosse, "On the Quantitative Analysis of Decoder-Based Generative Models", 2017, section 5.
    """
    if path not in get_args(Path):
        raise ValueError(f"path: expected one of {list(get_args(Path))}, got {path!r}.")
    if path == "geometric":
        return lambda place: place
    span = math.tanh(2.0)
    return lambda place: (math.tanh(2.0 * (2 * place - 1)) / span + 1) / 2


@dataclass(frozen=True)
class Annealer:
    """Chains along the path of one batch of data, in either direction, with moves that are tuned and frozen.

    Attributes:
        joint: The densities.
        evaluate: They and their gradients.
        path: Place on the path to beta.
        tuning: Step sizes and metric.
        num_steps: T.
        num_leapfrog: L.
    """

    joint: AnnealingPath
    evaluate: Evaluate
    path: Callable[[float], float]
    tuning: Tuning
    num_steps: int
    num_leapfrog: int

    @classmethod
    def tuned(
        cls,
        joint: AnnealingPath,
        num_chains: int,
        num_steps: int,
        num_leapfrog: int,
        path: Path,
        metric: Metric,
        captured: CapturedPath | None,
    ) -> Annealer:
        """Tune the moves by a pilot; one graph, where it is captured, serves the pilot and all that follows."""
        beta, (start, end) = beta_of(path), _variances(joint, metric)
        u = joint.draw(min(num_chains, PILOT_CHAINS) if captured is None else num_chains)
        evaluate = evaluation(joint.terms) if captured is None else captured(joint, u)
        tuning = tune(evaluate, u, beta, start, end, num_leapfrog, num_steps)
        return cls(joint, evaluate, beta, tuning, num_steps, num_leapfrog)

    def run(self, u: Tensor, forward: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        r"""Move chains along the path and sum up their weights.

        .. math:: \log w = \textstyle\sum_{t=1}^T (\beta_t - \beta_{t-1})\, b(u_{t-1})

        Forward, u_0 is a draw of the start and u_t comes from u_{t-1} by a move at beta_t. Backward, u_{T-1} is a draw of the
        posterior, and the same moves are made in the opposite order: the reverse of each is itself.

        Args:
            u: Where the chains begin, shape ``(C, B, U)``.
            forward: The direction.

        Returns:
            Log weights, shape ``(C, B)``, float64, nats; where the chains end, shape ``(C, B, U)``; mean acceptance, shape
            ``(B,)``, NaN where there are no moves.
        """
        betas = [self.path(t / self.num_steps) for t in range(self.num_steps + 1)]
        order = range(1, self.num_steps + 1) if forward else range(self.num_steps, 0, -1)
        state = self.evaluate(u)
        log_w = torch.zeros_like(state.slope, dtype=widest(u.device))
        accepted = torch.zeros_like(log_w[0])
        for t in order:
            log_w += (betas[t] - betas[t - 1]) * state.slope
            stop = t if forward else t - 1
            if 0 < stop < self.num_steps:
                step, scale = self.tuning.step_size(stop / self.num_steps), self.tuning.scale(betas[stop])
                state, probability = move(self.evaluate, state, betas[stop], step, scale, self.num_leapfrog)
                accepted += probability.mean(0)
        return log_w, state.u, accepted / (self.num_steps - 1) if self.num_steps > 1 else accepted * math.nan

    @property
    def step_size(self) -> Tensor:
        """Geometric mean of the step sizes over the path, shape ``(B,)``."""
        return self.tuning.log_steps.mean(0).exp()

    def estimate(self, num_chains: int) -> AnnealedEstimate:
        """The lower bound, from as many chains for each datum."""
        log_w, u, acceptance = self.run(self.joint.draw(num_chains))
        likelihood = self.joint.sums(u)["likelihood"].detach()
        log_w = log_w.to(likelihood.dtype)
        return AnnealedEstimate.from_chains(log_w, likelihood, acceptance, self.step_size, self.num_steps)


def _variances(joint: AnnealingPath, metric: Metric) -> tuple[Tensor, Tensor]:
    """Variances of the start and of what is nearest to the posterior: of the guide, where there is one."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric: expected one of {list(get_args(Metric))}, got {metric!r}.")
    start = joint.draw(METRIC_DRAWS)
    if metric == "unit":
        return torch.ones_like(start[0]), torch.ones_like(start[0])
    v0 = start.var(0)
    v1 = v0 if joint.start == "guide" else joint.draw(METRIC_DRAWS, "guide").var(0)
    return v0, torch.where(v1 > 1e-10 * v0, v1, v0)  # a guide without a spread says nothing


@clear_data_errors
@torch.no_grad()
def annealed_importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: object,
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
) -> AnnealedEstimate:
    r"""Estimate log p(x) of each datum by chains that go from a start to the posterior.

    .. math:: \log w = \textstyle\sum_{t=1}^T (\beta_t - \beta_{t-1})\, \log \frac{p(x, z_{t-1})}{f_0(z_{t-1})}, \quad
        f_\beta \propto f_0^{1 - \beta}\, p(x, z)^\beta, \quad \widehat{\log p}(x) = \log \tfrac1C \textstyle\sum_c w_c

    with z_0 from the start f_0, and z_t from z_{t-1} by a Hamiltonian move that leaves f at beta_t as it is. E[w] = p(x)
    whatever the moves, so that the estimate is a stochastic lower bound; it rises to log p(x) with the number of steps,
    and needs no guide that fits.

    All chains of all data move in one batch, of chains x data rows, which bounds memory: pass data in batches, and join
    the estimates by ``AnnealedEstimate.cat``. Step sizes, for each datum and place on the path, come from a pilot of at most 8
    chains (compiled: of C) that is discarded, and are then frozen. Latents are moved where their support is all real
    numbers, by its bijection. What the batch holds changes an estimate as other draws do, not by rounding only.

    Args:
        model: A Pyro model with latents in one plate that are continuous, or discrete and marked
            ``infer={"enumerate": "parallel"}`` there or in the guide: such are summed out of every density, exactly.
        guide: Its guide; None where the start is the prior. Beside a start, it gives the metric near the posterior.
        *args: What both take.
        num_chains: C, for each datum.
        num_steps: T, from the start to the posterior; the cost is C T L gradients for each datum.
        start: f_0, ``"prior"`` or ``"guide"``, which must have a density.
        path: The spacing of beta, see :func:`beta_of`.
        num_leapfrog: L, steps of one move.
        metric: Moves in units of the latents' standard deviations under start and guide (``"diagonal"``), or as they are.
        compile: Whether to compile density and gradient; a :class:`CapturedPath` shares its graphs between batches.
        seed: Of the draws, the generators being left as they were; None: they come from the global generators.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        **kwargs: Likewise what both take.

    Returns:
        The estimate of each datum.

    Raises:
        ValueError: If model and guide have no weights for each datum (see ``log_weights``), a latent site is discrete and
            not marked, the guide has no density where it is the start, or a number is below 1.

    References:
        Neal, "Annealed importance sampling", 2001; Wu, Burda, Salakhutdinov, Grosse, "On the Quantitative Analysis of
        Decoder-Based Generative Models", 2017.
    """
    check_counts(num_chains=num_chains, num_steps=num_steps, num_leapfrog=num_leapfrog)
    check_counts(0, seed=seed)
    with own_randomness(seed) if seed is not None else nullcontext():
        joint = AnnealingPath(model, guide, args, kwargs, start, plate, outer_scale)
        captured = CapturedPath() if compile is True else compile or None
        annealer = Annealer.tuned(joint, num_chains, num_steps, num_leapfrog, path, metric, captured)
        return annealer.estimate(num_chains)
