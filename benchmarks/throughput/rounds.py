"""Interleaved rounds: every rival once a round, in an order drawn anew, each timed alone."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from benchmarks.throughput.rivals import UNTRAINED, Case, Run, UnavailableError, make

WARM_UP = 5


class Spread(NamedTuple):
    """A median of rounds with the least and the greatest."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Median, minimum and maximum."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


@dataclass
class Row:
    """What one rival did.

    Attributes:
        name: Its name.
        seconds: Of each round.
        first_loss: At the very first step, nats per image.
        last_loss: Over the last round, nats per image.
        note: Why there is nothing else, or "".
        failed: Whether that is an error and not a matter of this machine.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    first_loss: float = 0.0
    last_loss: float = 0.0
    note: str = ""
    failed: bool = False

    @property
    def ran(self) -> bool:
        """Whether its times may be shown."""
        return not self.note

    def fail(self, note: str) -> None:
        """It is no figure."""
        self.note, self.failed = note, True


def measure(case: Case, names: Sequence[str], rounds: int, log: Callable[[str], None]) -> dict[str, Row]:
    """Each rival's times of as many rounds; what cannot run has a note instead."""
    rows = {name: Row(name) for name in names}
    runs = {name: run for name in names if (run := _started(rows[name], case)) is not None}
    shuffled = random.Random(0)
    for number in range(rounds):
        order = list(runs)
        shuffled.shuffle(order)
        for name in order:
            gc.collect()
            began = time.perf_counter()
            rows[name].last_loss = runs[name](case.steps)
            rows[name].seconds.append(time.perf_counter() - began)
        log(f"{case.network}, batch {case.batch_size}: round {number + 1} of {rounds}")
    for row in rows.values():
        if row.ran:
            check_trained(row)
    torch.compiler.reset()
    return rows


def _started(row: Row, case: Case) -> Run | None:
    """A rival that has taken its first steps, compiled and warm."""
    try:
        run = make(row.name, case)
        row.first_loss = run(1)
        run(WARM_UP)
        return run
    except UnavailableError as error:
        row.note = str(error)
    except Exception as error:  # one rival that fails must not end a run of half an hour
        row.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return None


def check_trained(row: Row) -> None:
    """A rival whose loss does not fall is none: its figure is withheld."""
    if row.name not in UNTRAINED and not row.last_loss < 0.97 * row.first_loss:
        row.fail(
            f"expected a loss that falls, got {row.first_loss:.1f} nats per image at the first step and "
            f"{row.last_loss:.1f} in the last round: it does not train, and its figure is withheld"
        )


def rate(case: Case, row: Row) -> Spread:
    """Images a second."""
    return spread(case.steps * case.batch_size / s for s in row.seconds)


def ratio(ours: Row, other: Row) -> Spread:
    """Our rate over another's, round by round."""
    return spread(theirs / mine for mine, theirs in zip(ours.seconds, other.seconds, strict=True))


def best_of_ours(rows: dict[str, Any]) -> str | None:
    """The row that stands for this package in float32."""
    return next((name for name in ("captured", "eager") if name in rows and rows[name].ran), None)
