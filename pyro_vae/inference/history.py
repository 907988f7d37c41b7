"""What training was like, and what it has done of the epoch under way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Row = dict[str, float]


@dataclass
class History:
    """What training was like, a row an epoch; every bound is the true one (beta = 1), nats per datum.

    Attributes:
        rows: A dict an epoch, see ``docs/run-directory.md`` for the columns.
        stopped_by: ``"epochs"``, ``"interrupted"``, or the reason that a callback gave.
        steps: Optimization steps taken, those of an interrupted epoch included.
        compiled: Whether they were compiled.
    """

    rows: list[Row] = field(default_factory=list)
    stopped_by: str = "epochs"
    steps: int = 0
    compiled: bool = False

    def __getitem__(self, column: str) -> list[float]:
        return [row[column] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, with the highest validation ELBO; the last where there is no validation.

        Where the objective weights or bends the KL, its value at the final weights decides instead; of a model without a bound
        its objective.
        """
        last = self.rows[-1] if self.rows else {}
        column = next((name for name in ("validation_objective", "validation_elbo") if name in last), None)
        if column is None:
            return len(self.rows)
        values = [value if math.isfinite(value) else -math.inf for value in self[column]]
        return 1 + max(range(len(values)), key=values.__getitem__)


@dataclass
class Progress:
    """What has been done of one epoch.

    Attributes:
        start: State of the generator of the data order when the epoch began.
        order: The order of its data, shape ``(N,)``, drawn from that state.
        totals: Sums of loss, distortion and rate over the data seen, shape ``(3,)``, nats.
        batches: Steps taken in it.
        seen: Data seen in it.
        seconds: How long it has been trained.
    """

    start: Tensor
    order: Tensor
    totals: Tensor
    batches: int = 0
    seen: int = 0
    seconds: float = 0.0

    def elbo(self) -> float:
        """Mean training ELBO so far, nats per datum; this waits for the device."""
        return -float(self.totals[1] + self.totals[2]) / self.seen

    def state_dict(self) -> dict[str, Any]:
        """All but the order, which can be drawn again."""
        return {
            "start": self.start,
            "totals": self.totals,
            "batches": self.batches,
            "seen": self.seen,
            "seconds": self.seconds,
        }
