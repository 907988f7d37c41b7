r"""Schedules for :math:`\beta`, the weight of the KL.

A schedule is an immutable function of the training step, counted from 0. Calling a schedule with a step returns the
weight as a float. From step number ``steps`` on, the weight keeps its final value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pyro_vae.lookup import parse_numbers, parse_spec

Schedule = Callable[[int], float]


def _check(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}; use 0 to switch the KL off.")


def _check_ramp(start: float, end: float) -> None:
    _check("the start of a schedule", start)
    _check("the end of a schedule", end)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps of a schedule: expected at least 1, got {steps}; for no ramp, use constant.")


@dataclass(frozen=True)
class Constant:
    r"""Constant KL weight :math:`\beta`.

    .. math:: \beta_t = b

    Args:
        value: The KL weight b, at least 0.

    Attributes:
        steps: Always 0, since there is no ramp.

    Raises:
        ValueError: If ``value`` is negative or not finite.
    """

    value: float
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check("beta", self.value)

    def __call__(self, step: int) -> float:  # noqa: ARG002
        return self.value


@dataclass(frozen=True)
class Linear:
    r"""Linear annealing from ``start`` to ``end`` in ``steps`` steps, then constant.

    .. math:: \beta_t = s + (e - s) \min(1, t / T)

    Args:
        start: The first KL weight, s, at least 0.
        end: The last KL weight, e, at least 0.
        steps: The number T of optimization steps after which ``end`` is reached, at least 1.

    Raises:
        ValueError: If a weight is negative or not finite, or ``steps`` is below 1.

    References:
        Bowman et al., "Generating Sentences from a Continuous Space", 2016.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_ramp(self.start, self.end)
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


@dataclass(frozen=True)
class Cyclical:
    r"""Cyclical annealing: repeated linear ramps from ``start`` to ``end``.

    Within the first ``steps`` training steps there are ``cycles`` cycles. Each cycle is a ramp, followed by steps at ``end``.
    After the last cycle, the weight stays at ``end``.

    .. math:: \beta_t = s + (e - s) \min(1, \tau / R),
        \quad \tau = \frac{t \bmod T/M}{T/M} \quad (t < T)

    Args:
        start: The first KL weight of each cycle, s, at least 0.
        end: The last KL weight of each cycle, e, at least 0.
        steps: The number T of training steps in all cycles together.
        cycles: The number M of cycles, from 1 to ``steps``.
        ratio: The share R of a cycle that the ramp takes, in (0, 1].

    Raises:
        ValueError: If ``start`` or ``end`` is negative or not finite, or ``cycles`` or ``ratio`` is out of range.

    References:
        Fu et al., "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing", 2019, eq. 6-7.
    """

    start: float
    end: float
    steps: int
    cycles: int = 4
    ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_ramp(self.start, self.end)
        if not 1 <= self.cycles <= self.steps:
            raise ValueError(
                f"cycles: expected between 1 and steps = {self.steps}, got {self.cycles}; give more steps or fewer cycles."
            )
        if not 0 < self.ratio <= 1:
            raise ValueError(
                f"ratio: expected the ramp's share of a cycle, in (0, 1], got {self.ratio}; use 0.5, for example."
            )

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        tau = (
            step * self.cycles % self.steps
        ) / self.steps  # integer arithmetic, so that a cycle begins exactly at a step
        return self.start + (self.end - self.start) * min(1.0, tau / self.ratio)


@dataclass(frozen=True)
class Cosine:
    r"""Annealing along half a cosine wave, which is flat at both ends.

    .. math:: \beta_t = s + (e - s)\, (1 - \cos(\pi u)) / 2, \quad u = \min(1, t / T)

    Args:
        start: The first KL weight, s, at least 0.
        end: The last KL weight, e, at least 0.
        steps: The number T of optimization steps after which ``end`` is reached, at least 1.

    Raises:
        ValueError: If a weight is negative or not finite, or ``steps`` is below 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_ramp(self.start, self.end)
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * 0.5 * (1 - math.cos(math.pi * min(1.0, step / self.steps)))


@dataclass(frozen=True)
class Sigmoid:
    r"""Annealing along a logistic curve that runs from ``start`` to ``end``.

    .. math:: \beta_t = s + (e - s)\, \frac{\sigma(k (2u - 1)) - \sigma(-k)}{\sigma(k) - \sigma(-k)},
        \quad u = \min(1, t / T), \quad k = 6

    Args:
        start: The first KL weight, s, at least 0.
        end: The last KL weight, e, at least 0.
        steps: The number T of optimization steps after which ``end`` is reached, at least 1.

    Raises:
        ValueError: If a weight is negative or not finite, or ``steps`` is below 1.

    References:
        Bowman et al., "Generating Sentences from a Continuous Space", 2016, figure 2 (there, the curve is not rescaled
        to reach both ends).
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_ramp(self.start, self.end)
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        low, high = _logistic(-6.0), _logistic(6.0)
        share = (_logistic(6.0 * (2 * min(1.0, step / self.steps) - 1)) - low) / (high - low)
        return self.start + (self.end - self.start) * share


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


constant, linear, cyclical, cosine, sigmoid = Constant, Linear, Cyclical, Cosine, Sigmoid

#: The schedules from ``start`` to ``end`` by their names on the command line.
RAMPS: dict[str, Callable[..., Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "cyclical": Cyclical,
}


def parse(text: str, end: float) -> Schedule:
    r"""Read ``KIND[:START:STEPS[:CYCLES]]``, the value of the flag ``--anneal``.

    Examples are ``"constant"``; ``"linear:0:2000"``, which starts at 0 and takes 2,000 training steps; and
    ``"cyclical:0:2000:4"``, which has 4 cycles.

    Args:
        text: The kind of schedule and its numbers, separated by colons.
        end: The final :math:`\beta` (the flag ``--beta``).

    Returns:
        The schedule.

    Raises:
        ValueError: If the kind is unknown, there are too few or too many numbers, or a number is out of range.
    """
    make, args = parse_spec("schedule", text, {"constant": Constant, **RAMPS})
    if make is Constant:
        parse_numbers("anneal", text, args, (), form="constant", example="constant")
        return Constant(end)
    name, cyclic = text.partition(":")[0], make is Cyclical
    form = f"{name}:START:STEPS[:CYCLES]" if cyclic else f"{name}:START:STEPS"
    types = (float, int, int) if cyclic else (float, int)
    start, *counts = parse_numbers(
        "anneal", text, args, types, form=form, example=f"{name}:0:2000", optional=int(cyclic)
    )
    return make(start, end, *map(int, counts))


def parse_all(text: str, beta: float | str) -> Schedule | dict[str, Schedule]:
    r"""Make the schedules that the flags ``--anneal`` and ``--beta`` describe.

    The value of ``--beta`` is one number, or a number for each named latent site, such as ``z1=0.5,z2=2``.

    Args:
        text: The value of ``--anneal``, see :func:`parse`.
        beta: The final :math:`\beta`, or the text of ``--beta``.

    Returns:
        The schedule. If ``beta`` names latent sites, a dict with a schedule for each named site; each schedule ends at
        the number given for the site.

    Raises:
        ValueError: If :func:`parse` refuses ``text``, a part of ``beta`` is not ``SITE=NUMBER``, or a site appears twice.
    """
    if "=" not in str(beta):
        return parse(text, _beta(beta, str(beta)))
    schedules: dict[str, Schedule] = {}
    for part in str(beta).split(","):
        site, _, number = part.partition("=")
        value = _beta(number, str(beta))
        if not site or site in schedules:
            raise ValueError(
                f"beta: expected each site name exactly once, got {beta!r}; write, for example, z1=0.5,z2=2."
            )
        schedules[site] = parse(text, value)
    return schedules


def _beta(number: float | str, text: str) -> float:
    """Read one number in the value of ``--beta``."""
    if not isinstance(number, str):
        return float(number)
    return parse_numbers("beta", text, [number], [float], form="a number or SITE=NUMBER,...", example="z1=0.5,z2=2")[0]
