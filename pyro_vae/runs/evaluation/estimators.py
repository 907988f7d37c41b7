"""Estimators of log p(x) by name, for whole data sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import evidence, parallel
from pyro_vae.data import Inputs, Stored
from pyro_vae.errors import check_counts
from pyro_vae.evidence import Bracket, Estimate
from pyro_vae.evidence.annealing.compiled import CapturedPath
from pyro_vae.evidence.importance.sampler import CHUNK_ROWS
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.lookup import lookup
from pyro_vae.models.protocol import PyroModel, has_bound
from pyro_vae.system import compiler
from pyro_vae.system.checksum import checksum
from pyro_vae.system.randomness import own_randomness

#: Data in one call of an estimator. With 10 draws each they make a chunk of 1,000 rows, which fits in the processor's cache.
BATCH = 100

#: Default number of test data of a slow estimator.
SLOW_DATA = 100

#: Options of estimators that draw importance samples, and of estimators that run chains.
SAMPLING = ("num_samples", "target_se", "max_samples")
ANNEALING = ("num_chains", "num_steps", "start", "path")


@dataclass(frozen=True)
class Estimation:
    """An estimator of log p(x) with its options.

    Attributes:
        estimator: A name from :data:`ESTIMATORS`.
        num_samples: Number of importance samples for each datum.
        target_se: Standard error to reach for each datum, nats. The number of samples grows until this error is reached; None:
            it is always ``num_samples``.
        max_samples: Largest number of samples for a datum if ``target_se`` is set.
        num_chains: Number of annealing chains for each datum.
        num_steps: Number of annealing steps of a chain.
        start: The distribution that chains start from, ``"prior"`` or ``"guide"``.
        path: Spacing of the annealing steps, ``"sigmoid"`` or ``"geometric"``.
        refine_steps: Number of optimization steps that refine the guide.
        compile: True to compile the draws or the chains; None: compile only if the evaluation is long enough to save time.

    Raises:
        ValueError: If a name is unknown or a number is out of range.
    """

    estimator: str = "importance"
    num_samples: int = 1000
    target_se: float | None = None
    max_samples: int = 100_000
    num_chains: int = 16
    num_steps: int = 500
    start: str = "guide"
    path: str = "sigmoid"
    refine_steps: int = 200
    compile: bool | None = None

    def __post_init__(self) -> None:
        lookup("estimator", self.estimator, ESTIMATORS)
        lookup("start", self.start, dict.fromkeys(("prior", "guide")))
        lookup("path", self.path, dict.fromkeys(("sigmoid", "geometric")))
        if self.num_samples < 2:
            raise ValueError(
                f"num_samples: expected at least 2 importance samples, to estimate an error, got {self.num_samples}."
            )
        if self.num_chains < 2:
            raise ValueError(f"num_chains: expected at least 2 chains, to estimate an error, got {self.num_chains}.")
        check_counts(num_steps=self.num_steps, refine_steps=self.refine_steps, max_samples=self.max_samples)
        if self.target_se is not None:
            self._check_target()

    def _check_target(self) -> None:
        if self.target_se is not None and not (math.isfinite(self.target_se) and self.target_se > 0):
            raise ValueError(f"target_se: expected a positive number of nats, got {self.target_se:g}.")
        if "target_se" not in self.row.options:
            names = " or ".join(name for name, row in ESTIMATORS.items() if "target_se" in row.options)
            raise ValueError(
                f"target_se: needs --estimator {names}, but --estimator {self.estimator} draws no importance samples; remove "
                "--target-se."
            )

    @property
    def row(self) -> Estimator:
        """The estimator's row in :data:`ESTIMATORS`."""
        return ESTIMATORS[self.estimator]

    @property
    def cost(self) -> str | None:
        """A phrase for the chains of each datum; None without chains."""
        if self.row.kind != "chains":
            return None
        return f"{self.num_chains} chains of {self.num_steps:,} steps from the {self.start}"

    def least(self, estimator: str) -> Estimation:
        """Return the cheapest options for a trial of the named estimator."""
        return dataclasses.replace(
            self,
            estimator=estimator,
            num_samples=2,
            target_se=None,
            num_chains=2,
            num_steps=1,
            refine_steps=1,
            compile=False,
        )


@dataclass(frozen=True)
class Batch:
    """A batch of data, with everything that an estimator needs.

    Attributes:
        vae: The model.
        inputs: The batch, as inputs of the model.
        first: Index of the batch's first datum in the data set.
        seed: Seed of the draws.
        how: The estimator with its options.
        captured: Cache of captured CUDA graphs; False: nothing is compiled.
    """

    vae: PyroModel
    inputs: tuple[Tensor, ...]
    first: int
    seed: int
    how: Estimation
    captured: CapturedDraws | CapturedPath | bool

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments for an estimator that draws importance samples."""
        options = {name: getattr(self.how, name) for name in SAMPLING}
        rows = self.first + torch.arange(len(self.inputs[0]))
        chunk = min(CHUNK_ROWS, Inputs(*self.inputs).chunk)
        return options | {"seed": self.seed, "data_ids": rows, "chunk_rows": chunk, "compile": self.captured}

    @property
    def annealing(self) -> dict[str, Any]:
        """Arguments for an estimator that runs annealing chains."""
        options = {name: getattr(self.how, name) for name in ANNEALING}
        return options | {"compile": self.captured, "seed": parallel.stream_seed(self.seed, self.first)}


def _importance(batch: Batch) -> Estimate:
    return evidence.importance_sampling(batch.vae.model, batch.vae.guide, *batch.inputs, **batch.sampling)


def _prior(batch: Batch) -> Estimate:
    return evidence.prior_sampling(batch.vae.model, *batch.inputs, **batch.sampling)


def _refined(batch: Batch) -> Estimate:
    options = batch.sampling | {"compile": False}  # each batch has a different guide
    return evidence.refined_importance_sampling(
        batch.vae.model, batch.vae.guide, *batch.inputs, steps=batch.how.refine_steps, **options
    )


def _annealed(batch: Batch) -> Estimate:
    return evidence.annealed_importance_sampling(batch.vae.model, batch.vae.guide, *batch.inputs, **batch.annealing)


def _bidirectional(batch: Batch) -> Bracket:
    return evidence.bidirectional(batch.vae.model, batch.vae.guide, *batch.inputs, **batch.annealing)


@dataclass(frozen=True)
class Estimator:
    """An estimator of the command line: a row of :data:`ESTIMATORS`.

    Attributes:
        make: Function that takes a batch and returns the estimate.
        options: Fields of :class:`Estimation` that the estimator reads.
        kind: Source of the draws: the guide, the prior, a refined guide, or chains.
        help: A phrase for ``--help``.
        simulates: True if the estimator evaluates data simulated from the model instead of test data.
    """

    make: Callable[[Batch], Estimate | Bracket]
    options: tuple[str, ...]
    kind: Literal["guide", "prior", "refined", "chains"]
    help: str
    simulates: bool = False

    @property
    def slow(self) -> bool:
        """True if the estimator is slow: by default it uses ``SLOW_DATA`` data."""
        return self.kind in ("refined", "chains")

    @property
    def suits_every_model(self) -> bool:
        """True if the estimator needs only draws from the guide."""
        return self.kind == "guide"


#: Estimators of the command line by name. ``smoothed`` runs ``importance``; its result has the smoothed estimate too.
ESTIMATORS: dict[str, Estimator] = {
    "importance": Estimator(_importance, SAMPLING, "guide", "draws from the guide"),
    "smoothed": Estimator(_importance, SAMPLING, "guide", "draws from the guide, Pareto-smoothed weights"),
    "prior": Estimator(_prior, SAMPLING, "prior", "draws from p(z)"),
    "refined": Estimator(_refined, (*SAMPLING, "refine_steps"), "refined", "a guide refined for each image"),
    "annealed": Estimator(_annealed, ANNEALING, "chains", "HMC chains"),
    "bidirectional": Estimator(
        _bidirectional, ANNEALING, "chains", "bounds from both sides, on simulated images", simulates=True
    ),
}


def estimate(
    vae: PyroModel,
    data: Inputs | Tensor | Stored | tuple[Tensor | Stored, ...],
    how: Estimation,
    seed: int,
    progress: bool = False,
) -> Estimate | Bracket:
    """Estimate log p(x) of each datum, batch by batch.

    The processes of a job share the batches; the result does not depend on the number of processes.

    Args:
        vae: The model.
        data: Images, shape ``(N, *data_shape)``, or the inputs of the model. The estimator ``bidirectional`` uses only the
            number and the shape of the images, and simulates other images.
        how: The estimator with its options.
        seed: Seed of the draws. The seed is combined with the model's parameters. So the draws of two models are independent,
            as a comparison requires.
        progress: Show a progress bar on a terminal.

    Returns:
        The estimates, with a row for each image: a ``Bracket`` for ``bidirectional``, an ``Estimate`` for all other estimators.

    Raises:
        ValueError: If the model's objective is no bound on log p(x).
    """
    if not has_bound(vae):
        raise ValueError(
            f"log p(x): expected a model with a bound on log p(x), got {type(vae).__name__}, which minimizes a squared error; "
            "choose a vae."
        )
    inputs = Inputs.of(data)
    size = min(BATCH, inputs.chunk)
    count = math.ceil(len(inputs) / size)
    numbers = tqdm(
        parallel.local_indices(count),
        total=math.ceil(count / parallel.world().size),
        disable=None if progress else True,
        unit="batch",
        leave=False,
        desc=f"log p(x), {how.estimator}",
    )
    vae.eval()
    seed = parallel.stream_seed(seed, 1 + checksum(vae.parameters()))
    captured = _cache(vae, len(inputs), how)
    parts = []
    with own_randomness(seed), parallel.shared_errors():
        for number in numbers:
            if number is not None:
                rows = inputs[number * size : (number + 1) * size]
                parts.append(how.row.make(Batch(vae, rows, number * size, seed, how, captured)))
    return _concatenate(parallel.merge_batches(parts))


def _concatenate(parts: Sequence[Any]) -> Estimate | Bracket:
    whole: Estimate | Bracket = type(parts[0]).cat(parts)
    return whole


def estimate_batch(vae: PyroModel, inputs: tuple[Tensor, ...], how: Estimation, seed: int = 0) -> Estimate | Bracket:
    """Estimate log p(x) of a batch in this process; see :func:`estimate`."""
    return how.row.make(Batch(vae, inputs, 0, seed, how, captured=False))


def _cache(vae: PyroModel, num_data: int, how: Estimation) -> CapturedDraws | CapturedPath | bool:
    """Return a new cache of CUDA graphs; False if nothing is compiled."""
    chains = how.row.kind == "chains"
    calls = 3 * 5 * how.num_chains * how.num_steps if chains else how.num_samples  # backward, and leapfrog steps
    flops = 2.0 * sum(p.numel() for p in vae.parameters()) * num_data * calls
    compiled = compiler.worth_compiling(flops, next(vae.parameters()).device) if how.compile is None else how.compile
    if not compiled:
        return False
    return CapturedPath() if chains else CapturedDraws()
