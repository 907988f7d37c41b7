"""History of a training, progress of an epoch, and their text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyro_vae.inference.training.checkpoint import State
from pyro_vae.models.protocol import PyroModel, has_bound, loss_name, trained_on

Row = dict[str, float]


@dataclass
class History:
    """A row of figures for each epoch.

    Every bound is the true one (beta = 1), in nats per datum.

    Attributes:
        rows: A dict for each epoch; ``docs/run-directory.md`` explains the columns.
        stopped_by: ``"epochs"``, ``"interrupted"``, or the reason that a callback gave.
        steps: Optimization steps taken, those of an interrupted epoch included.
        compiled: True if they were compiled.
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

        Without validation data it is the last one. If the objective weights or bends the KL, its value at the final weights
        decides instead; for a model without a bound, its objective.
        """
        last = self.rows[-1] if self.rows else {}
        column = next((name for name in ("validation_objective", "validation_elbo") if name in last), None)
        if column is None:
            return len(self.rows)
        values = [value if math.isfinite(value) else -math.inf for value in self[column]]
        return 1 + max(range(len(values)), key=values.__getitem__)


@dataclass
class EpochProgress:
    """The part of an epoch that is done.

    Attributes:
        start: State of the generator of the data order when the epoch began.
        order: The order of its data, shape ``(N,)``, drawn from that state.
        totals: Sums of loss, distortion and rate over the data seen, shape ``(3,)``, nats.
        batches: Steps taken in it.
        seen: Data seen in it.
        seconds: Training time in it.
    """

    start: Tensor
    order: Tensor
    totals: Tensor
    batches: int = 0
    seen: int = 0
    seconds: float = 0.0

    def means(self, has_bound: bool) -> Row:
        """Return means over the data seen, as columns of the history, nats."""
        loss, distortion, rate = (self.totals / self.seen).tolist()
        elbo = {"train_elbo": -distortion - rate} if has_bound else {}
        return {"objective": -loss, **elbo, "train_rate": rate, "train_distortion": distortion}

    def elbo(self) -> float:
        """Return the mean training ELBO, nats per datum; wait for the device."""
        return -float(self.totals[1] + self.totals[2]) / self.seen

    def state_dict(self) -> State:
        """Return all but the order, which can be drawn again."""
        return {
            "start": self.start,
            "totals": self.totals,
            "batches": self.batches,
            "seen": self.seen,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: State) -> None:
        """Take the totals and counts of a state."""
        self.totals.copy_(state["totals"])
        self.batches, self.seen, self.seconds = state["batches"], state["seen"], float(state["seconds"])


_HEADER = (
    "       epoch   train ELBO   validation ELBO        rate   distortion     beta   images/s\n"
    "                     nats              nats        nats         nats"
)


_HEADER_WITHOUT_BOUND = "       epoch   train loss   validation loss   images/s"


def table_header(model: PyroModel) -> str:
    """Return the names of the columns of :func:`epoch_line`."""
    if has_bound(model):
        return _HEADER + (f"\n             train ELBO: of {part}" if (part := trained_on(model)) else "")
    return f"{_HEADER_WITHOUT_BOUND}\n             {loss_name(model)} of a datum, no bound on log p(x)"


def epoch_line(row: Row, epochs: int) -> str:
    """Return the line of an epoch; ``epochs`` is their total number."""
    epoch, speed = f"{row['epoch']:6.0f}/{epochs:<5d}", f"{row['images_per_second']:10,.0f}"
    if "train_elbo" not in row:
        return f"{epoch} {-row['objective']:12.2f} {_validation(row, 'objective', -1):>17} {speed}"
    prefix = "validation" if "validation_elbo" in row else "train"
    return (
        f"{epoch} {row['train_elbo']:12.2f} {_validation(row, 'elbo'):>17} {row[prefix + '_rate'] + 0.0:11.2f} "
        f"{row[prefix + '_distortion']:12.2f} {row['beta']:8.3f} {speed}"
    )


def mean_text(model: PyroModel, objective: float) -> str:
    """Return the text for the mean objective of the current epoch."""
    return f"ELBO {objective:.2f}" if has_bound(model) else f"loss {-objective:.2f}"


def _validation(row: Row, name: str, sign: int = 1) -> str:
    if f"validation_{name}_std_error" not in row:
        return "-"
    value, error = sign * row[f"validation_{name}"], row[f"validation_{name}_std_error"]
    return f"{value:.2f}" + (f" ± {error:.2f}" if math.isfinite(error) else "")
