"""Law ``gradients``, the slopes: autograd's derivatives of every term are those of the term."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.testing.program import Subject, Values, latent_sites, parameters
from pyro_vae.testing.report import Ledger

LAW = "gradients"
STEPS = (1e-2, 3e-3)
DETACHED = "a value detached on its way (z.detach(), .data, torch.no_grad(), numpy), or a backward pass of one's own"
#: By term: slopes, and what rounding may add to their norm.
Quotients = dict[str, tuple[Tensor, float]]


def check_derivatives(subject: Subject, ledger: Ledger) -> None:
    r"""Compare :math:`\partial / \partial z` of every term with a difference quotient, along a random direction."""
    sites = latent_sites(subject.guide_trace)
    with torch.no_grad():
        values, _ = subject.draw()
    checked = 0
    for name, site in sites.items():
        if not site["fn"].has_rsample or not values[name].is_floating_point() or site["infer"].get("is_auxiliary"):
            continue
        checked += 1
        # Small values of a positive latent are moved by little, so that they stay in its support.
        direction = torch.randn_like(values[name]) * values[name].abs().clamp(1e-2, 1)
        slopes = _slopes(subject, values, name, direction)
        quotients = [_quotients(subject, values, name, direction, step) for step in STEPS]
        for term, slope in slopes.items():
            if all(_far(slope, *quotient[term]) for quotient in quotients):
                sizes = [float(quotients[1][term][0].norm()), float(slope.norm())]
                figures = f"its slope along z is {sizes[0]:.4g} by differences and {sizes[1]:.4g} by autograd"
                ledger.breaks(LAW, f"{term}, with respect to {name!r}", figures, DETACHED)
                return
    if checked:
        ledger.holds(LAW, "the latent values", "autograd's slopes of all terms are their difference quotients")


def _far(slope: Tensor, quotient: Tensor, rounding: float) -> bool:
    """Whether they differ by more than rounding, a kink or the quotient's own error can explain; shape ``(B,)`` each."""
    inside = torch.isfinite(quotient) & torch.isfinite(slope)
    slope, quotient = slope[inside], quotient[inside]
    size = torch.maximum(slope.norm(), quotient.norm())
    return bool((slope - quotient).norm() > 0.2 * size + 0.02 + rounding)


def _slopes(subject: Subject, values: Values, name: str, direction: Tensor) -> dict[str, Tensor]:
    leaf = values[name].detach().clone().requires_grad_()
    found = {}
    for term, value in subject.evaluate(values | {name: leaf}).parts().items():
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
        along = torch.zeros_like(leaf) if grad is None else grad * direction
        found[term] = _per_datum(subject, name, along)
    return found


def _per_datum(subject: Subject, name: str, value: Tensor) -> Tensor:
    event_dim = latent_sites(subject.guide_trace)[name]["fn"].event_dim
    inner = value.flatten(value.dim() - event_dim).sum(-1) if event_dim else value
    return subject.layout.per_datum(inner)[0].double()


@torch.no_grad()
def _quotients(subject: Subject, values: Values, name: str, direction: Tensor, step: float) -> Quotients:
    """By term, difference quotients, shape ``(B,)``, and what rounding may add to their norm."""
    ends = [subject.evaluate(values | {name: values[name] + sign * step * direction}).parts() for sign in (1, -1)]
    found = {}
    for term, above in ends[0].items():
        rounding = 4 * torch.finfo(above.dtype).eps * float(above.nan_to_num(posinf=0, neginf=0).norm()) / step
        found[term] = (above.double() - ends[1][term].double()) / (2 * step), rounding
    return found


def check_parameter_slopes(subject: Subject, still: tuple[str, ...], ledger: Ledger) -> None:
    r"""Compare :math:`\partial / \partial (\theta, \phi)` of every term, at fixed latent values, with a difference quotient.

    Along one random direction of all parameters; a term that differs is looked at again, parameter by parameter.

    Args:
        subject: The program.
        still: Parts of names of parameters that are meant to have no gradient.
        ledger: Where findings go.
    """
    with torch.no_grad():
        values, _ = subject.draw()
    traces = (subject.traced(f, subject.call, subject.index | values) for f in (subject.guide, subject.model))
    found = {n: p for n, p in parameters(*traces).items() if p.requires_grad and not any(s in n for s in still)}
    if not found:
        return  # which is said where each parameter's gradient is asked for
    # Small entries are moved by little, so that no scale or weight becomes another one.
    moves = {n: torch.randn_like(p) * p.detach().abs().clamp(1e-2, 1) for n, p in found.items()}
    for term in _unlike(subject, values, found, moves):
        worst = next((n for n in found if term in _unlike(subject, values, found, {n: moves[n]})), None)
        slope, quotient = (float(v) for v in _pair(subject, values, found, moves, term))
        figures = f"its slope along a random move of them is {quotient:.4g} by differences and {slope:.4g} by autograd"
        where = f"{term}, with respect to " + (f"parameter {worst!r}" if worst else "the parameters")
        causes = f"{DETACHED}; declare a parameter that is meant to stand still by without_gradient=[...]"
        ledger.breaks(LAW, where, figures, causes)
        return
    ledger.holds(LAW, "the parameters' slopes", "autograd's slopes of all terms are their difference quotients")


def _unlike(subject: Subject, values: Values, params: dict[str, Tensor], moves: dict[str, Tensor]) -> Iterator[str]:
    """The terms whose slope along these moves is not their difference quotient, at any step."""
    slopes = _parameter_slopes(subject, values, params, moves)
    quotients = [_parameter_quotients(subject, values, params, moves, step) for step in STEPS]
    for term, slope in slopes.items():
        if all(_far(slope, *quotient[term]) for quotient in quotients):
            yield term


def _pair(
    subject: Subject, values: Values, params: dict[str, Tensor], moves: dict[str, Tensor], term: str
) -> tuple[Tensor, Tensor]:
    slopes = _parameter_slopes(subject, values, params, moves)
    return slopes[term], _parameter_quotients(subject, values, params, moves, STEPS[1])[term][0]


def _parameter_slopes(
    subject: Subject, values: Values, params: dict[str, Tensor], moves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """By term, summed over data, shape ``(1,)``."""
    found = {}
    leaves = [params[name] for name in moves]
    for term, value in subject.evaluate(values).parts().items():
        total = torch.zeros(1, dtype=torch.float64)
        if value.requires_grad:
            grads = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
            pairs = zip(grads, moves.values(), strict=True)
            total = total + sum(float((grad * move).double().sum()) for grad, move in pairs if grad is not None)
        found[term] = total
    return found


@torch.no_grad()
def _parameter_quotients(
    subject: Subject, values: Values, params: dict[str, Tensor], moves: dict[str, Tensor], step: float
) -> Quotients:
    """By term, summed over data, shape ``(1,)``, and what rounding may add."""
    ends = []
    for sign in (1, -1):
        with _moved(params, moves, sign * step):
            ends.append(subject.evaluate(values).parts())
    found = {}
    for term, above in ends[0].items():
        rounding = 4 * torch.finfo(above.dtype).eps * float(above.nan_to_num(posinf=0, neginf=0).norm()) / step
        change = (above.double() - ends[1][term].double()).sum().reshape(1)
        found[term] = change / (2 * step), rounding
    return found


@contextmanager
def _moved(params: dict[str, Tensor], moves: dict[str, Tensor], step: float) -> Iterator[None]:
    """Parameters moved for a while."""
    before = {name: params[name].detach().clone() for name in moves}
    try:
        for name, move in moves.items():
            params[name].copy_(before[name] + step * move)
        yield
    finally:
        for name, old in before.items():
            params[name].copy_(old)
