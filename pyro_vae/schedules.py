r"""Schedules for :math:`\beta`: functions of the optimization step, counted from 0.

A schedule is a frozen value: calling it with a step gives a float, and ``steps`` says when it has settled at ``end``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyro_vae.lookup import lookup

Schedule = Callable[[int], float]


def _check(name: str, value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}; use 0 to switch the KL off.")
    return float(value)


@dataclass(frozen=True)
class Constant:
    r""":math:`\beta_t = b` at every step."""

    value: float
    steps: int = 0

    def __post_init__(self) -> None:
        _check("beta", self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    r""":math:`\beta_t = s + (e - s) \min(1, t / T)`."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check("the start of a schedule", self.start)
        _check("the end of a schedule", self.end)
        if self.steps < 1:
            raise ValueError(f"steps of a schedule: expected at least 1, got {self.steps}; use constant instead.")

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


@dataclass(frozen=True)
class Cyclical:
    r"""The ramp from ``start`` to ``end``, ``cycles`` times over, then ``end`` for good.

    .. math:: \beta_t = s + (e - s) \min(1, \tau / R),
        \quad \tau = \frac{t \bmod T/M}{T/M}

    with T = ``steps``, M = ``cycles``, R = ``ratio``, for t < T.

    References:
        Fu et al., "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing", 2019, eq. 6-7.
    """

    start: float
    end: float
    steps: int
    cycles: int = 4
    ratio: float = 0.5

    def __post_init__(self) -> None:
        _check("the start of a schedule", self.start)
        _check("the end of a schedule", self.end)
        if not 1 <= self.cycles <= self.steps:
            raise ValueError(
                f"cycles: expected between 1 and steps = {self.steps}, got {self.cycles}; give more steps or fewer cycles."
            )
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: expected the share of a cycle that rises, in (0, 1], got {self.ratio}.")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        tau = (step * self.cycles % self.steps) / self.steps  # whole numbers, so that a cycle begins where it should
        return self.start + (self.end - self.start) * min(1.0, tau / self.ratio)


@dataclass(frozen=True)
class Cosine:
    r""":math:`\beta_t = s + (e - s)\, (1 - \cos(\pi u)) / 2, \quad u = \min(1, t / T)`: slow at both ends."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        Linear(self.start, self.end, self.steps)  # the same conditions

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * 0.5 * (1 - math.cos(math.pi * min(1.0, step / self.steps)))


@dataclass(frozen=True)
class Sigmoid:
    r"""A logistic curve, stretched so that it begins at ``start`` and ends at ``end``.

    .. math:: \beta_t = s + (e - s)\, \frac{\sigma(k (2u - 1)) - \sigma(-k)}{\sigma(k) - \sigma(-k)},
        \quad u = \min(1, t / T), \quad k = 6
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        Linear(self.start, self.end, self.steps)  # the same conditions

    def __call__(self, step: int) -> float:
        low, high = _logistic(-6.0), _logistic(6.0)
        share = (_logistic(6.0 * (2 * min(1.0, step / self.steps) - 1)) - low) / (high - low)
        return self.start + (self.end - self.start) * share


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def constant(value: float) -> Constant:
    r"""Constant :math:`\beta`.

    Args:
        value: The weight of the KL, at least 0.

    Raises:
        ValueError: If ``value`` is negative or not finite.
    """
    return Constant(value)


def linear(start: float, end: float, steps: int) -> Linear:
    r"""Linear annealing from ``start`` to ``end`` over ``steps`` steps, then ``end``.

    Args:
        start: The first :math:`\beta`, at least 0.
        end: The last :math:`\beta`, at least 0.
        steps: After how many optimization steps ``end`` is reached, at least 1.

    Raises:
        ValueError: If a weight is negative or not finite, or ``steps`` is below 1.

    References:
        Bowman et al., "Generating Sentences from a Continuous Space", 2016.
    """
    return Linear(start, end, steps)


def cyclical(start: float, end: float, steps: int, cycles: int = 4, ratio: float = 0.5) -> Cyclical:
    r"""Cyclical annealing: ``cycles`` ramps within ``steps`` steps, then ``end``.

    Args:
        start: The :math:`\beta` at which each cycle begins, at least 0.
        end: The :math:`\beta` that each cycle reaches, at least 0.
        steps: The length of all cycles together, in optimization steps.
        cycles: How many cycles.
        ratio: The share of a cycle spent on the ramp, in (0, 1]; the rest stays at ``end``.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Fu et al., "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing", 2019, eq. 6-7.
    """
    return Cyclical(start, end, steps, cycles, ratio)


def cosine(start: float, end: float, steps: int) -> Cosine:
    r"""Annealing along half a cosine wave from ``start`` to ``end`` over ``steps`` steps, then ``end``.

    Args:
        start: The first :math:`\beta`, at least 0.
        end: The last :math:`\beta`, at least 0.
        steps: After how many optimization steps ``end`` is reached, at least 1.

    Raises:
        ValueError: If a weight is negative or not finite, or ``steps`` is below 1.
    """
    return Cosine(start, end, steps)


def sigmoid(start: float, end: float, steps: int) -> Sigmoid:
    r"""Annealing along a logistic curve from ``start`` to ``end`` over ``steps`` steps, then ``end``.

    Args:
        start: The first :math:`\beta`, at least 0.
        end: The last :math:`\beta`, at least 0.
        steps: After how many optimization steps ``end`` is reached, at least 1.

    Raises:
        ValueError: If a weight is negative or not finite, or ``steps`` is below 1.

    References:
        Bowman et al., "Generating Sentences from a Continuous Space", 2016, figure 2 (there not stretched).
    """
    return Sigmoid(start, end, steps)


def parse(text: str, end: float) -> Schedule:
    r"""Read ``KIND[:START:STEPS[:CYCLES]]``, the form of the flag ``--anneal``.

    ``"constant"``, ``"linear:0:2000"`` (from 0, over 2,000 steps) and ``"cyclical:0:2000:4"`` are examples.

    Args:
        text: The words, separated by colons.
        end: The final :math:`\beta` (the flag ``--beta``).

    Raises:
        ValueError: If the kind is unknown, or its numbers are missing, superfluous or out of range.
    """
    kind, *words = text.split(":")
    forms = {
        "constant": ("constant", 0, 0),
        "linear": ("linear:START:STEPS", 2, 2),
        "cosine": ("cosine:START:STEPS", 2, 2),
        "sigmoid": ("sigmoid:START:STEPS", 2, 2),
        "cyclical": ("cyclical:START:STEPS[:CYCLES]", 2, 3),
    }
    form, least, most = lookup("schedule", kind, forms)
    try:
        if not least <= len(words) <= most:
            raise ValueError
        start, steps, *cycles = [float(words[0]), *map(int, words[1:])] if words else [0.0, 0]
    except ValueError:
        raise ValueError(f"schedule: expected {form} such as linear:0:2000, got {text!r}.") from None
    if kind == "constant":
        return constant(end)
    ramps: dict[str, Callable[[float, float, int], Schedule]] = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
    if kind in ramps:
        return ramps[kind](start, end, int(steps))
    return cyclical(start, end, int(steps), *map(int, cycles))


def parse_all(text: str, beta: float | str) -> Schedule | dict[str, Schedule]:
    r"""Read ``--anneal`` and ``--beta``, of which the latter may be a number for each of some sites, ``z1=0.5,z2=2``.

    Args:
        text: See :func:`parse`; each site gets a schedule of its own, to its own final :math:`\beta`.
        beta: The final weight, or the text.

    Raises:
        ValueError: See :func:`parse`; or if a part of ``beta`` is not ``SITE=NUMBER``.
    """
    try:
        return parse(text, float(beta))
    except ValueError:
        if "=" not in str(beta):
            if isinstance(beta, str):
                raise ValueError(
                    f"beta: expected a number, or SITE=NUMBER,... such as z1=0.5,z2=2, got {beta!r}."
                ) from None
            raise
    found: dict[str, Schedule] = {}
    for part in str(beta).split(","):
        site, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(
                f"beta: expected a number, or SITE=NUMBER,... such as z1=0.5,z2=2, got {part!r} in {beta!r}."
            ) from None
        if not site or site in found:
            raise ValueError(f"beta: expected each site once, with its name, got {beta!r}.")
        found[site] = parse(text, value)
    return found
