"""The subject of an evaluation: a run with its test data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae import evidence, parallel
from pyro_vae.data import Data, Inputs, Split, Stored
from pyro_vae.errors import check_count
from pyro_vae.lookup import lookup
from pyro_vae.models.protocol import evaluation_inputs, evidence_name, has_bound, has_density
from pyro_vae.runs.directory import resuming
from pyro_vae.runs.evaluation.checks import CHECKS
from pyro_vae.runs.evaluation.estimators import Estimation
from pyro_vae.runs.evaluation.suitability import check_suitable
from pyro_vae.runs.run import Run
from pyro_vae.system.checksum import checksum
from pyro_vae.system.randomness import own_randomness

#: Seed of the dequantization noise. A run has another seed, so that its draws are independent of the noise.
DEQUANTIZED = 1_812_433_253


@dataclass(frozen=True)
class Request:
    """A request to evaluate runs.

    Attributes:
        how: The estimator and its options. The option ``num_samples`` is ignored.
        num_samples: Number of importance samples, used in place of ``how.num_samples``; None: the number in each run's
            configuration.
        num_data: Number of test data to evaluate, counted from the first; None: all.
        dequantize: ``"none"``; or ``"uniform"``: a pixel x from 0 to 255 becomes (x + u) / 256 with u uniform in [0, 1).
        checks: Names from ``checks.CHECKS``.
    """

    how: Estimation
    num_samples: int | None = None
    num_data: int | None = None
    dequantize: str = "none"
    checks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_data is not None:
            check_count("num_data", self.num_data, remark=" image")
        for name in self.checks:
            lookup("check", name, CHECKS)
        if self.dequantize not in ("none", "uniform"):
            raise ValueError(f"dequantize: expected none or uniform, got {self.dequantize!r}.")

    @property
    def whole(self) -> bool:
        """True if the default estimator evaluates the whole test set."""
        return self.how.estimator == Estimation.estimator and self.num_data is None and self.dequantize == "none"

    @property
    def name(self) -> str:
        """Key under which ``summary.json`` has the request's figures."""
        parts = [self.how.estimator]
        parts += [] if self.dequantize == "none" else ["dequantized"]
        return "-".join(parts if self.num_data is None else [*parts, str(self.num_data)])


@dataclass(frozen=True)
class Subject:
    """A run with its evaluation data.

    Attributes:
        run: The run.
        data: The data of the run.
        inputs: The test data, as inputs of the model.
        density: True if log p(x) is a log density.
        name: Name of the estimated quantity, see :func:`evidence_name`.
        key: Shape, kind and checksum of the data. If two runs can be compared, their keys are equal.
    """

    run: Run
    data: Data
    inputs: Inputs
    density: bool
    name: str
    key: tuple[object, ...]


def load_subject(run: Run, request: Request) -> Subject:
    """Load the data of a run, and check the request.

    Raises:
        ValueError: If the run has no complete epoch or the model has no log p(x); if the test data are missing, too few, or
            cannot be dequantized; or if the estimator or a check does not suit the model.
    """
    _check_run(run)
    with parallel.local_main_first():
        data = run.data()
    if data.test is None:
        raise ValueError(f"run {run.path}: an evaluation needs test data, but the data set has none.")
    split = _first(data.test, request.num_data, run)
    density = has_density(run.vae, evaluation_inputs(run.vae, split))
    if request.dequantize == "uniform":
        if not density:
            raise ValueError(
                f"dequantize: expected a run whose likelihood is a density, got {run.config.model.likelihood} ({run.path}), "
                "which gives probabilities; remove --dequantize."
            )
        split = split._replace(x=_dequantized(split.x))
    inputs = evaluation_inputs(run.vae, split)
    name = evidence_name(run.vae, inputs)  # log p(x|y) is not log p(x)
    key = (len(split.x), tuple(split.x.shape[1:]), density, name, _checksum(split.x))
    check_suitable(run.vae, inputs, request.how, request.checks, f"the {run.config.model.model} of {run.path}")
    return Subject(run, data, inputs, density, name, key)


def _check_run(run: Run) -> None:
    """Refuse a run without a log p(x) or without a complete epoch."""
    if not has_bound(run.vae):
        raise ValueError(
            f"run {run.path}: expected a model with a log p(x) to evaluate, got {run.config.model.model}, which has none; the "
            "squared error is in summary.json."
        )
    if not run.history.rows:
        raise ValueError(
            f"run {run.path}: expected at least one whole epoch to evaluate, but the first was interrupted; continue with "
            f"{resuming(run.path)}."
        )


def _first(split: Split, count: int | None, run: Run) -> Split:
    """Return the first ``count`` data of a split."""
    if count is None:
        return split
    if count > len(split.x):
        raise ValueError(f"num_data: expected at most the {len(split.x):,} test images of {run.path}, got {count:,}.")
    return split.take(torch.arange(count))


def _dequantized(x: Tensor | Stored) -> Tensor:
    """Dequantize pixels: k / 255 becomes (k + u) / 256.

    u is uniform in [0, 1).
    """
    if not isinstance(x, Tensor):
        raise ValueError("dequantize: expected test images that fit in memory, got more; pass a smaller --num-data.")
    levels = x.double() * 255
    if not bool((levels - levels.round()).abs().max() < 1e-3):
        raise ValueError(
            "dequantize: expected 8-bit pixels, multiples of 1/255, got other values, as in resized images; remove "
            "--dequantize."
        )
    with own_randomness(DEQUANTIZED):
        return evidence.dequantize(levels.round())


def _checksum(x: Tensor | Stored) -> int:
    """Return a checksum of the pixels.

    If the data are on disk, only about 100 evenly spaced images are read.
    """
    some = x if isinstance(x, Tensor) else x[torch.arange(0, len(x), max(1, len(x) // 100))]
    return checksum([some])
