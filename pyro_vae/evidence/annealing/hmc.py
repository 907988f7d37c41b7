r"""Hamiltonian moves of many chains and data at once, along a path of densities :math:`f_\beta = e^{a + \beta b}`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Step sizes are drawn anew at each move from this range times the tuned one: with a constant one the trajectories of
#: a Gaussian may close, and what is long for one direction is short for another.
JITTER = (0.3, 1.0)


class State(NamedTuple):
    r"""Where the chains are, and what is known there.

    Attributes:
        u: Unconstrained latents, shape ``(C, B, U)``.
        base: a, shape ``(C, B)``, nats.
        slope: b, shape ``(C, B)``, nats.
        base_grad: Gradient of a, shape ``(C, B, U)``.
        slope_grad: Gradient of b, shape ``(C, B, U)``.
    """

    u: Tensor
    base: Tensor
    slope: Tensor
    base_grad: Tensor
    slope_grad: Tensor

    def log_density(self, beta: float) -> Tensor:
        r"""Log density :math:`a + \beta b`, shape ``(C, B)``."""
        return self.base + beta * self.slope

    def gradient(self, beta: float) -> Tensor:
        """Its gradient, shape ``(C, B, U)``: kept in two parts, so that a new beta needs no new evaluation."""
        return self.base_grad + beta * self.slope_grad


#: The path at unconstrained latents, shape ``(C, B, U)``: one evaluation, one gradient.
Evaluate = Callable[[Tensor], State]


def widest(device: torch.device) -> torch.dtype:
    """The dtype in which to sum over steps: float64, which MPS has not."""
    return torch.float32 if device.type == "mps" else torch.float64


def evaluation(terms: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Evaluate:
    """A function of u to (a, b), each of shape ``(C, B)``, with its gradients.

    The gradient of a, a prior or a guide, is cheap beside that of b, in which the decoder is.
    """

    def evaluate(u: Tensor) -> State:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            base, slope = terms(u)
            base_grad, slope_grad = _gradient(base, u), _gradient(slope, u)
        return State(u.detach(), base.detach(), slope.detach(), base_grad, slope_grad)

    return evaluate


def _gradient(terms: Tensor, u: Tensor) -> Tensor:
    """0 where they do not depend on u."""
    if not terms.requires_grad:
        return torch.zeros_like(u)
    (grad,) = torch.autograd.grad(terms.sum(), u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(u) if grad is None else grad


def move(
    evaluate: Evaluate, state: State, beta: float, step_size: Tensor, scale: Tensor, num_leapfrog: int
) -> tuple[State, Tensor]:
    r"""One Hamiltonian move of every chain, which leaves :math:`f_\beta` as it is and is reversible.

    .. math:: v \leftarrow v + \tfrac\epsilon2 s \nabla \log f_\beta(u), \quad u \leftarrow u + \epsilon s v, \quad
        v \leftarrow v + \tfrac\epsilon2 s \nabla \log f_\beta(u)

    with v ~ N(0, I) and L such steps, taken with the probability :math:`\min(1, e^{-\Delta H})`. Each chain of each datum moves
    by itself: a step size of its own, a decision of its own. Each step evaluates one gradient.

    Args:
        evaluate: The path.
        state: Where the chains are.
        beta: The place on the path.
        step_size: Epsilon, shape ``(B,)``, positive.
        scale: s, the scales of the unconstrained latents, shape that broadcasts to ``(B, U)``, positive.
        num_leapfrog: L, at least 1.

    Returns:
        Where they are next, and the probability with which each would move, shape ``(C, B)``; a trajectory that leaves
        the finite numbers has probability 0.

    References:
        Neal, "MCMC using Hamiltonian dynamics", 2011, sections 3 and 4.2.
    """
    low, high = JITTER
    jitter = low + (high - low) * torch.rand_like(state.base)
    size = (step_size.to(state.u.dtype) * jitter)[..., None] * scale
    velocity = torch.randn_like(state.u)
    before = state.log_density(beta) - velocity.square().sum(-1) / 2
    velocity = velocity + size / 2 * state.gradient(beta)
    proposal = state
    for step in range(1, num_leapfrog + 1):
        proposal = evaluate(proposal.u + size * velocity)
        velocity = velocity + (size if step < num_leapfrog else size / 2) * proposal.gradient(beta)
    after = proposal.log_density(beta) - velocity.square().sum(-1) / 2
    probability = (after - before).nan_to_num(nan=-torch.inf).clamp(max=0).exp()
    taken = torch.rand_like(probability) < probability
    kept = (
        torch.where(taken if x.dim() == 2 else taken[..., None], x, y) for x, y in zip(proposal, state, strict=True)
    )
    return State(*kept), probability
