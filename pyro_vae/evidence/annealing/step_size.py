"""Step sizes of Hamiltonian moves, tuned by a discarded pilot."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evidence.annealing.hmc import Evaluate, move, sum_dtype

#: Target of the tuning: mean acceptance probability of the moves.
TARGET_ACCEPTANCE = 0.9
#: Places on the path at which step sizes are tuned; their logarithms are interpolated linearly.
NUM_KNOTS = 10
#: Fewest and most moves at each place: one move for each 50 steps of the path, and three times as many at the first place.
MOVES_PER_KNOT = (3, 6)
#: Largest number of pilot chains.
MAX_PILOT_CHAINS = 8
#: Largest step size, in units of the scales.
MAX_STEP_SIZE = 50.0


@dataclass(frozen=True)
class Tuning:
    r"""Step sizes and scales of the moves along the path.

    The squared scales are variances. Their inverse is :math:`(1 - \beta) / v_0 + \beta / v_1`, as on a path between two
    Gaussians.

    Attributes:
        log_steps: Logarithm of each datum's step size at J equally spaced places, shape ``(J, B)``, float64.
        start: Variances v_0 of the latents at the start, in a shape that broadcasts to ``(B, U)``.
        end: Variances v_1 of the latents near the posterior, in a shape that broadcasts to ``(B, U)``.
    """

    log_steps: Tensor
    start: Tensor
    end: Tensor

    def step_size(self, place: float) -> Tensor:
        """Step size of each datum at a place from 0 to 1.

        Shape ``(B,)``.
        """
        position = place * (len(self.log_steps) - 1)
        low = min(int(position), len(self.log_steps) - 2)
        return torch.lerp(self.log_steps[low], self.log_steps[low + 1], position - low).exp()

    def scale(self, beta: float) -> Tensor:
        """Scales of the latents at a given beta.

        Their shape broadcasts to ``(B, U)``.
        """
        return ((1 - beta) / self.start + beta / self.end).rsqrt()


def tune(
    evaluate: Evaluate,
    u: Tensor,
    path: Callable[[float], float],
    start: Tensor,
    end: Tensor,
    num_leapfrog: int,
    num_steps: int,
) -> Tuning:
    r"""Tune the step sizes by moving pilot chains once along the path.

    .. math:: \log \epsilon_{n+1} = \log \epsilon_n + 1.5\, n^{-0.6} (\bar\alpha_n - 0.9)

    at each of ten places, where n counts the moves, :math:`\epsilon_n` is the datum's step size and :math:`\bar\alpha_n` its
    mean acceptance probability over chains. The step size of a place is the geometric mean over the second half of its moves.
    The chains of the pilot are then discarded. Later moves have fixed step sizes and are therefore reversible.

    Args:
        evaluate: Function that evaluates the densities of the path and their gradients.
        u: Draws from the start, shape ``(C, B, U)``.
        path: Function from a place, 0 to 1, to beta.
        start: Variances v_0 at the start, see :class:`Tuning`.
        end: Variances v_1 near the posterior, see :class:`Tuning`.
        num_leapfrog: Number of leapfrog steps in one move, L.
        num_steps: Number of steps T, which sets the length of the pilot.

    References:
        Robbins, Monro, "A Stochastic Approximation Method", 1951; Andrieu, Thoms, "A tutorial on adaptive MCMC", 2008.
    """
    state, moves = evaluate(u), min(max(num_steps // 50, MOVES_PER_KNOT[0]), MOVES_PER_KNOT[1])
    log_step = torch.full((u.shape[1],), math.log(0.5), dtype=sum_dtype(u.device), device=u.device)
    log_steps: list[Tensor] = []
    for knot in range(NUM_KNOTS):
        place = knot / (NUM_KNOTS - 1)
        scale = Tuning(log_step[None], start, end).scale(path(place))
        history = []
        for n in range(1, moves * (1 if knot else 3) + 1):
            state, probability = move(evaluate, state, path(place), log_step.exp(), scale, num_leapfrog)
            log_step = log_step + 1.5 * n**-0.6 * (probability.mean(0).to(log_step) - TARGET_ACCEPTANCE)
            log_step = log_step.clamp(max=math.log(MAX_STEP_SIZE))
            history.append(log_step)
        log_step = torch.stack(history[len(history) // 2 :]).mean(0)
        log_steps.append(log_step)
    return Tuning(torch.stack(log_steps), start, end)
