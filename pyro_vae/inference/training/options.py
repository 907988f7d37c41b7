"""The numbers and names of one training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro

from pyro_vae.errors import check_count
from pyro_vae.inference.svi.precision import PRECISIONS
from pyro_vae.lookup import lookup

#: Optimizers by name: the ``pyro.optim`` class that becomes one fused torch optimizer.
OPTIMIZERS = {"adam": pyro.optim.Adam, "adamw": pyro.optim.AdamW, "sgd": pyro.optim.SGD}

#: Learning-rate schedules by name: share of training done, in [0, 1), to the factor on ``lr``.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** (int(done >= 0.5) + int(done >= 0.75)),
}


@dataclass(frozen=True)
class FitOptions:
    """The numbers and names of one training run, see :func:`pyro_vae.fit`.

    Raises:
        ValueError: If a number is out of its range or a name is unknown.
    """

    epochs: int = 100
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_schedule: str = "constant"
    clip_norm: float | None = None
    num_workers: int = 0
    seed: int = 0
    compile: bool | None = None
    precision: str = "float32"
    check_every: int | None = None
    labelled_per_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value}.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers: expected 0 or more processes, got {self.num_workers}.")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value}.")
        if self.check_every is not None:
            check_count("check_every", self.check_every, remark=" step")
        lookup("optimizer", self.optimizer, OPTIMIZERS)
        lookup("precision", self.precision, PRECISIONS)
        lookup("learning-rate schedule", self.lr_schedule, LR_SCHEDULES)
