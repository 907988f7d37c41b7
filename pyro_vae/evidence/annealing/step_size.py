"""Step sizes of Hamiltonian moves, found by chains that are then discarded, and frozen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evidence.annealing.hmc import Evaluate, move, widest

#: The mean acceptance to which step sizes are tuned.
TARGET = 0.9
#: Places on the path at which they are tuned, with straight lines between their logarithms.
KNOTS = 10
#: Moves at each of them, at least and at most: one for each 50 steps of the path; at the first knot, three times as many.
MOVES = (3, 6)
#: Chains of the pilot, at most.
PILOT_CHAINS = 8
#: The largest step, in units of the metric's scales.
LARGEST = 50.0


@dataclass(frozen=True)
class Tuning:
    r"""How to move at each place of the path.

    The metric's scales have the precision :math:`(1 - \beta) / v_0 + \beta / v_1`, as a path between two Gaussians has.

    Attributes:
        log_steps: Logarithm of each datum's step size at equally spaced places, shape ``(J, B)``, float64.
        start: v_0, variances at the start, shape that broadcasts to ``(B, U)``.
        end: v_1, variances near the posterior, likewise.
    """

    log_steps: Tensor
    start: Tensor
    end: Tensor

    def step_size(self, place: float) -> Tensor:
        """Each datum's step size at a place from 0 to 1, shape ``(B,)``."""
        position = place * (len(self.log_steps) - 1)
        low = min(int(position), len(self.log_steps) - 2)
        return torch.lerp(self.log_steps[low], self.log_steps[low + 1], position - low).exp()

    def scale(self, beta: float) -> Tensor:
        """The metric's scales, shape that broadcasts to ``(B, U)``."""
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
    r"""Find step sizes by moving chains once along the path.

    .. math:: \log \epsilon_{n+1} = \log \epsilon_n + 1.5\, n^{-0.6} (\bar\alpha_n - 0.9)

    at each of ten places, the mean of the second half of which is kept; :math:`\bar\alpha` is the datum's mean acceptance over
    chains. The chains serve nothing else, so that moves with these steps are as reversible as any.

    Args:
        evaluate: The path.
        u: Draws of the start, shape ``(C, B, U)``.
        path: Place, from 0 to 1, to beta.
        start: See :class:`Tuning`.
        end: Likewise.
        num_leapfrog: L.
        num_steps: T, to which the pilot's length is measured.

    References:
        Robbins, Monro, "A Stochastic Approximation Method", 1951; Andrieu, Thoms, "A tutorial on adaptive MCMC", 2008.
    """
    state, moves = evaluate(u), min(max(num_steps // 50, MOVES[0]), MOVES[1])
    log_step = torch.full((u.shape[1],), math.log(0.5), dtype=widest(u.device), device=u.device)
    found: list[Tensor] = []
    for knot in range(KNOTS):
        place = knot / (KNOTS - 1)
        scale = Tuning(log_step[None], start, end).scale(path(place))
        seen = []
        for n in range(1, moves * (1 if knot else 3) + 1):
            state, probability = move(evaluate, state, path(place), log_step.exp(), scale, num_leapfrog)
            log_step = log_step + 1.5 * n**-0.6 * (probability.mean(0).to(log_step) - TARGET)
            log_step = log_step.clamp(max=math.log(LARGEST))
            seen.append(log_step)
        log_step = torch.stack(seen[len(seen) // 2 :]).mean(0)
        found.append(log_step)
    return Tuning(torch.stack(found), start, end)
