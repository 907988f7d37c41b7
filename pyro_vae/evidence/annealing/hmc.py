"""Hamiltonian moves along the path, for many chains and data at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Range of the random factor on each move's step size. With a constant step size the trajectories of a Gaussian may
#: close, and a length that suits one direction is too short for another.
STEP_SIZE_JITTER = (0.3, 1.0)


class State(NamedTuple):
    r"""Positions of the chains, with the densities and gradients at them.

    The log density is :math:`a + \beta b`.

    Attributes:
        u: Unconstrained latents, shape ``(C, B, U)``.
        base: Part a, shape ``(C, B)``, nats.
        slope: Coefficient b of beta, shape ``(C, B)``, nats.
        base_grad: Gradient of a, shape ``(C, B, U)``.
        slope_grad: Gradient of b, shape ``(C, B, U)``.
    """

    u: Tensor
    base: Tensor
    slope: Tensor
    base_grad: Tensor
    slope_grad: Tensor

    def log_density(self, beta: float) -> Tensor:
        r"""Log density :math:`a + \beta b`, shape ``(C, B)``, nats."""
        return self.base + beta * self.slope

    def gradient(self, beta: float) -> Tensor:
        """Gradient of the log density, shape ``(C, B, U)``.

        The gradients of a and b are stored separately, so that a new beta needs no new evaluation.
        """
        return self.base_grad + beta * self.slope_grad


#: Function that evaluates the path and its gradient at unconstrained latents, shape ``(C, B, U)``.
Evaluate = Callable[[Tensor], State]


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums over steps: float64, or float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def evaluation(terms: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Evaluate:
    r"""Make a function that evaluates the log density and its gradient.

    The log density of the unconstrained latents u is :math:`a + \beta b`. The gradient of a (a prior or a guide) costs little
    in comparison with the gradient of b, which contains the decoder.

    Args:
        terms: Function from u, shape ``(C, B, U)``, to a and b, each of shape ``(C, B)``.
    """

    def evaluate(u: Tensor) -> State:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            base, slope = terms(u)
            base_grad, slope_grad = _gradient(base, u), _gradient(slope, u)
        return State(u.detach(), base.detach(), slope.detach(), base_grad, slope_grad)

    return evaluate


def _gradient(terms: Tensor, u: Tensor) -> Tensor:
    """Compute the gradient of the summed terms with respect to u.

    The gradient is 0 if no term depends on u.
    """
    if not terms.requires_grad:
        return torch.zeros_like(u)
    (grad,) = torch.autograd.grad(terms.sum(), u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(u) if grad is None else grad


def move(
    evaluate: Evaluate, state: State, beta: float, step_size: Tensor, scale: Tensor, num_leapfrog: int
) -> tuple[State, Tensor]:
    r"""Make one reversible Hamiltonian move of every chain.

    .. math:: v \leftarrow v + \tfrac\epsilon2 s \nabla \log f_\beta(u), \quad u \leftarrow u + \epsilon s v, \quad
        v \leftarrow v + \tfrac\epsilon2 s \nabla \log f_\beta(u)

    with step size :math:`\epsilon`, scales s and momentum v ~ N(0, I). After L such steps, the new position is accepted with
    probability :math:`\min(1, e^{-\Delta H})`, which leaves :math:`f_\beta` invariant. Each chain of each datum has its own
    step size and is accepted or rejected on its own. Each step evaluates one gradient.

    Args:
        evaluate: Function that evaluates the densities of the path and their gradients.
        state: Positions of the chains.
        beta: Exponent of the posterior in :math:`f_\beta`, 0 to 1.
        step_size: Step size epsilon of each datum, shape ``(B,)``, positive.
        scale: Scales s of the unconstrained latents, in a shape that broadcasts to ``(B, U)``, positive.
        num_leapfrog: Number of leapfrog steps L, at least 1.

    Returns:
        The next positions of the chains, and the acceptance probabilities, shape ``(C, B)``. A trajectory that reaches infinity
        or NaN has probability 0.

    References:
        Neal, "MCMC using Hamiltonian dynamics", 2011, sections 3 and 4.2.
    """
    low, high = STEP_SIZE_JITTER
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
