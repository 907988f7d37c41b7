"""The law ``gradients``: autograd's derivatives agree with difference quotients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.subject import Subject, Values, latent_sites, parameters

LAW = "gradients"
#: Step sizes of the difference quotients. The smallest step is used only if rounding errors are small there.
STEPS = (1e-2, 3e-3, 3e-4)
#: Up to LOOKS draws are searched for a difference between autograd and a quotient. A difference counts if at least AGAIN of
#: TRIES further draws show it too: one that is due to the kink of a relu does not appear again.
LOOKS, AGAIN, TRIES = 2, 2, 4
DETACHED = "a detached value (z.detach(), .data, torch.no_grad(), numpy), or a wrong backward pass of your own"
#: For each log-probability, by a description of the site: its difference quotients, and the rounding error of their norm.
Quotients = dict[str, tuple[Tensor, float]]
#: For each log-probability with a wrong derivative: the derivative by difference quotient, and the one by autograd.
Unlike = dict[str, tuple[float, float]]


def check_derivatives(subject: Subject, ledger: Ledger) -> None:
    r"""Check :math:`\partial / \partial z` of every log-probability by difference quotients."""
    sites = latent_sites(subject.guide_trace).items()
    names = [n for n, s in sites if s["fn"].has_rsample and not s["infer"].get("is_auxiliary")]
    names = [n for n in names if dict(sites)[n]["value"].is_floating_point()]

    def look() -> Unlike:
        with torch.no_grad():
            values, _ = subject.draw()
        return {where: sizes for name in names for where, sizes in _unlike_along(subject, values, name).items()}

    found = _repeated(look)
    if found is not None:
        where, sizes = found
        figures = f"its derivative along z is {sizes[0]:.4g} by difference quotient and {sizes[1]:.4g} by autograd"
        ledger.breaks(LAW, where, figures, DETACHED)
    elif names:
        ledger.holds(LAW, "the latent values", "autograd's derivatives of all terms agree with difference quotients")


def _repeated(look: Callable[[], Unlike]) -> tuple[str, tuple[float, float]] | None:
    """Return a wrong derivative that several draws show, or None.

    ``look`` draws latent values and returns the wrong derivatives there.
    """
    first = next((found for _ in range(LOOKS) if (found := look())), {})
    again = [look() for _ in range(TRIES)] if first else []
    return next(((w, sizes) for w, sizes in first.items() if sum(w in other for other in again) >= AGAIN), None)


def _unlike_along(subject: Subject, values: Values, name: str) -> Unlike:
    # Small values move by little, so that values of a positive latent site stay positive.
    direction = torch.randn_like(values[name]) * values[name].abs().clamp(1e-2, 1)
    slopes = _slopes(subject, values, name, direction)
    quotients = [_quotients(subject, values, name, direction, step) for step in STEPS]
    found = {}
    for term, slope in slopes.items():
        if _differs(slope, [quotient[term] for quotient in quotients]):
            found[f"{term}, with respect to {name!r}"] = float(quotients[1][term][0].norm()), float(slope.norm())
    return found


def _differs(slope: Tensor, quotients: list[tuple[Tensor, float]]) -> bool:
    """Return True if a derivative agrees with none of its difference quotients."""
    *coarse, (fine, rounding) = quotients
    telling = rounding <= 0.01 + 0.1 * float(fine.nan_to_num(posinf=0, neginf=0).norm())
    return all(_far(slope, *quotient) for quotient in (quotients if telling else coarse))


def _far(slope: Tensor, quotient: Tensor, rounding: float) -> bool:
    """Return True if a derivative and a quotient differ beyond numerical error.

    Both have a value for each datum, shape ``(B,)``.
    """
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
    return subject.data_plate.per_datum(inner)[0].double()


@torch.no_grad()
def _quotients(subject: Subject, values: Values, name: str, direction: Tensor, step: float) -> Quotients:
    """Return the difference quotient of every log-probability along ``direction``.

    The quotients, shape ``(B,)``, are with respect to the latent site ``name``.
    """
    ends = [subject.evaluate(values | {name: values[name] + sign * step * direction}).parts() for sign in (1, -1)]
    found = {}
    for term, above in ends[0].items():
        rounding = 4 * torch.finfo(above.dtype).eps * float(above.nan_to_num(posinf=0, neginf=0).norm()) / step
        found[term] = (above.double() - ends[1][term].double()) / (2 * step), rounding
    return found


def check_parameter_slopes(subject: Subject, still: tuple[str, ...], ledger: Ledger) -> None:
    r"""Check the parameter derivatives of log-probabilities by difference quotients.

    The latent values stay fixed while all parameters move along a random direction. If a derivative along this direction
    is wrong, each parameter is moved alone, to name the one at fault.

    Args:
        subject: The program.
        still: Substrings of the names of parameters that should have no gradient.
        ledger: Collects the findings.
    """
    known = parameters(subject.guide_trace, subject.model_trace)
    params = {n: p for n, p in known.items() if p.requires_grad and not any(part in n for part in still)}
    if not params:
        return  # check_parameters reports it
    found = _repeated(lambda: _unlike_moved(subject, params, list(params)))
    if found is None:
        ledger.holds(
            LAW, "derivatives by the parameters", "autograd's derivatives of all terms agree with difference quotients"
        )
        return
    term, (quotient, slope) = found
    figures = (
        f"its derivative along a random direction is {quotient:.4g} by difference quotient and {slope:.4g} by autograd"
    )
    one = next((n for n in params if _repeated(lambda n=n: _unlike_moved(subject, params, [n], term))), None)  # type: ignore[misc]
    where = f"{term}, with respect to " + (f"parameter {one!r}" if one else "the parameters")
    causes = f"{DETACHED}; declare a parameter that should stay fixed by without_gradient=[...]"
    ledger.breaks(LAW, where, figures, causes)


def _unlike_moved(subject: Subject, params: dict[str, Tensor], names: list[str], term: str | None = None) -> Unlike:
    """Move parameters along a random direction; return the wrong derivatives.

    Args:
        subject: The program.
        params: All parameters, by name.
        names: Names of the parameters to move.
        term: The only log-probability to check; None: check all.
    """
    with torch.no_grad():
        values, _ = subject.draw()
    # Small entries move by little, so that no scale changes its sign.
    moves = {n: torch.randn_like(params[n]) * params[n].detach().abs().clamp(1e-2, 1) for n in names}
    slopes = _parameter_slopes(subject, values, params, moves)
    quotients = [_parameter_quotients(subject, values, params, moves, step) for step in STEPS]
    return {
        name: (float(quotients[1][name][0]), float(slope))
        for name, slope in slopes.items()
        if term in (None, name) and _differs(slope, [quotient[name] for quotient in quotients])
    }


def _parameter_slopes(
    subject: Subject, values: Values, params: dict[str, Tensor], moves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return autograd's derivative of every log-probability along ``moves``.

    Each log-probability is summed over the data, so a derivative has shape ``(1,)``.
    """
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
    """Return the difference quotient of every log-probability along ``moves``.

    Each log-probability is summed over the data, so a quotient has shape ``(1,)``.
    """
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
    """Context in which the parameters are moved by ``step * moves``."""
    before = {name: params[name].detach().clone() for name in moves}
    try:
        for name, move in moves.items():
            params[name].copy_(before[name] + step * move)
        yield
    finally:
        for name, old in before.items():
            params[name].copy_(old)
