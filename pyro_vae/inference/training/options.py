"""The options of a training run, each declared only here."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from pyro_vae.errors import check_count, check_number
from pyro_vae.inference.svi.optimizer import LR_SCHEDULES, OPTIMIZERS
from pyro_vae.inference.svi.precision import PRECISIONS
from pyro_vae.lookup import lookup, unknown

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options that ``fit`` and the command share, each with its help text."""

    epochs: int = 100
    """Passes over the training data, in total."""
    batch_size: int = 128
    """Batch size."""
    labelled_per_batch: int | None = None
    """Labelled data in each batch, if some labels are unknown;
    default: each label once an epoch, evenly spread; 1 for a model that classifies, if there are fewer labels than batches."""
    optimizer: str = "adam"
    """Optimizer: {names}."""
    lr: float = 1e-3
    """Learning rate."""
    lr_schedule: str = "constant"
    """Learning-rate schedule: {names};
    cosine falls to 0, step falls to a tenth at half of the steps and at three quarters."""
    clip_norm: float | None = None
    """Largest norm of the gradient of the loss per datum;
    default: no clipping."""
    seed: int = 0
    """Seed of the data order and of every draw;
    on the command line, also of the initial parameters."""
    compile: bool | None = None
    """Compile the training step;
    default: if a compiler works and the run is long enough to repay the compilation."""
    check_every: int | None = None
    """Compare a compiled step with an eager one every this many steps;
    default: compare only once, after compilation."""
    precision: str = "float32"
    """Precision of the products in the networks: {names};
    sums and everything else stay float32."""


@dataclass(frozen=True, kw_only=True)
class FitOptions(TrainingOptions):
    """The options of :func:`pyro_vae.fit`, by keyword only.

    Raises:
        TypeError: If a number has the wrong type.
        ValueError: If a number is out of its range or a name is unknown.
    """

    num_workers: int = 0
    """Number of processes that read ahead, for data too large for memory."""

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_count("num_workers", self.num_workers, least=0)
        check_number("lr", self.lr, _positive, "a positive number")
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, _positive, "a positive number")
        if self.check_every is not None:
            check_count("check_every", self.check_every, remark=" step")
        lookup("optimizer", self.optimizer, OPTIMIZERS)
        lookup("precision", self.precision, PRECISIONS)
        lookup("learning-rate schedule", self.lr_schedule, LR_SCHEDULES)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a training step.

        Args:
            step: Number of the training step, counted from 0.
            steps_per_epoch: Number of training steps in an epoch.
        """
        return self.lr * LR_SCHEDULES[self.lr_schedule](step / (self.epochs * steps_per_epoch))


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


class FitKeywords(TypedDict, total=False):
    """The fields of :class:`FitOptions` as keywords, for type checkers."""

    epochs: int
    batch_size: int
    labelled_per_batch: int | None
    optimizer: str
    lr: float
    lr_schedule: str
    clip_norm: float | None
    seed: int
    compile: bool | None
    check_every: int | None
    precision: str
    num_workers: int


def with_options(function: F) -> F:
    """Decorate a function to show the fields of :class:`FitOptions` in its signature.

    The fields take the place of ``**options`` in the signature that ``inspect`` and ``help`` show.
    """
    *own, _ = inspect.signature(function).parameters.values()
    fields = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in dataclasses.fields(FitOptions)
    ]
    signature = inspect.signature(function).replace(parameters=[*own, *fields])
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def make_options(function: str, keywords: FitKeywords, shown: Callable[..., object]) -> FitOptions:
    """Make the options from the keywords that a function received.

    Args:
        function: The name of the function, for errors.
        keywords: The keywords that the function received.
        shown: The function itself; its signature lists all known keywords.

    Raises:
        TypeError: If a keyword is unknown, or a number has the wrong type. For an unknown keyword, the message lists
            the known keywords and suggests the most similar keyword.
        ValueError: If a number is out of its range or a name is unknown.
    """
    known = inspect.signature(shown).parameters
    for name in keywords:
        if name not in known:
            keyword_only = [p.name for p in known.values() if p.kind is p.KEYWORD_ONLY]
            raise TypeError(f"{function}: {unknown('option', name, keyword_only)}")
    return FitOptions(**keywords)
