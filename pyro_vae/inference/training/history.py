"""History of a training run, and progress within an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyro_vae.inference.training.checkpoint import State

Row = dict[str, float]


@dataclass
class History:
    """History of a training run: a row of numbers for each epoch.

    Every bound is the true bound (KL weight 1), in nats per datum.

    Attributes:
        rows: A dict for each epoch with a number in each column; ``docs/run-directory.md`` explains the columns.
        stopped_by: ``"epochs"``, ``"interrupted"``, or the reason that a callback gave to :meth:`Training.stop`.
        steps: Number of training steps taken, including those of an interrupted epoch.
        compiled: True if the training steps were compiled.
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
        """The epoch with the highest validation ELBO, counted from 1.

        Without validation data, this is the last epoch. The validation objective is used in place of the ELBO in two
        cases: if the objective weights or controls the KL (the objective is then computed at the final KL weights), and
        if the model has no bound.
        """
        last = self.rows[-1] if self.rows else {}
        column = next((name for name in ("validation_objective", "validation_elbo") if name in last), None)
        if column is None:
            return len(self.rows)
        values = [value if math.isfinite(value) else -math.inf for value in self[column]]
        return 1 + max(range(len(values)), key=values.__getitem__)


@dataclass
class EpochProgress:
    """Progress within the current epoch.

    Attributes:
        start: State of the data-order generator at the start of the epoch.
        order: Order of the data in the epoch, shape ``(N,)``, drawn from ``start``.
        totals: Sums of loss, distortion and rate over the data seen, shape ``(3,)``, nats.
        batches: Number of training steps taken in the epoch.
        seen: Number of data seen in the epoch.
        seconds: Training time in the epoch, seconds.
    """

    start: Tensor
    order: Tensor
    totals: Tensor
    batches: int = 0
    seen: int = 0
    seconds: float = 0.0

    def means(self, has_bound: bool) -> Row:
        """Return the means over the data seen, as columns of the history.

        All values are in nats per datum.

        Args:
            has_bound: True if the model has an ELBO; otherwise the column ``train_elbo`` is left out.
        """
        loss, distortion, rate = (self.totals / self.seen).tolist()
        elbo = {"train_elbo": -distortion - rate} if has_bound else {}
        return {"objective": -loss, **elbo, "train_rate": rate, "train_distortion": distortion}

    def elbo(self) -> float:
        """Return the mean training ELBO of the data seen, nats per datum.

        The call waits for the device.
        """
        return -float(self.totals[1] + self.totals[2]) / self.seen

    def state_dict(self) -> State:
        """Return the progress as a dict, without the attribute ``order``.

        The order can be drawn again from ``start``.
        """
        return {
            "start": self.start,
            "totals": self.totals,
            "batches": self.batches,
            "seen": self.seen,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore totals, counts and seconds from a state."""
        self.totals.copy_(state["totals"])
        self.batches, self.seen, self.seconds = state["batches"], state["seen"], float(state["seconds"])
