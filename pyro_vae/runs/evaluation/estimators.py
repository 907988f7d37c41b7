"""Log p(x) of a run's data by each estimator, batch by batch, with the batches shared by the processes of a job."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from pyro_vae.models.protocol import has_bound
from pyro_vae.system import compiler
from pyro_vae.system.checksum import checksum
from pyro_vae.system.randomness import own_randomness

#: Data of one call of an estimator: with 10 draws each, a chunk of 1,000 rows, which stays in the processor's cache.
BATCH = 100


@dataclass(frozen=True)
class Estimation:
    """How log p(x) is estimated.

    Attributes:
        estimator: One of :data:`ESTIMATORS`.
        num_samples: K, importance samples for each datum.
        target_se: Standard error to reach for each datum, nats, in place of ``num_samples``; None: no such thing.
        max_samples: The largest K under ``target_se``.
        num_chains: Chains of an annealed estimate, for each datum.
        num_steps: Steps of a chain.
        start: Where chains start, ``"prior"`` or ``"guide"``.
        path: How they are spaced, ``"sigmoid"`` or ``"geometric"``.
        refine_steps: Steps of a refined proposal.
        compile: Whether to compile what is evaluated over and over; None: if it is long enough to repay that.

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
                f"num_samples: expected at least 2 importance samples, for an error, got {self.num_samples}."
            )
        if self.num_chains < 2:
            raise ValueError(f"num_chains: expected at least 2 chains, for an error, got {self.num_chains}.")
        check_counts(num_steps=self.num_steps, refine_steps=self.refine_steps, max_samples=self.max_samples)
        if self.target_se is not None and not (math.isfinite(self.target_se) and self.target_se > 0):
            raise ValueError(f"target_se: expected a positive number of nats, got {self.target_se:g}.")
        if self.target_se is not None and self.estimator not in DRAWN:
            raise ValueError(
                f"target_se: expected with --estimator {' or '.join(DRAWN)}, got {self.estimator}, whose draws are not chosen "
                "for each datum; drop it."
            )

    @property
    def spent(self) -> str | None:
        """What is spent on each datum, where it is chains."""
        if self.estimator not in CHAINED:
            return None
        return f"{self.num_chains} chains of {self.num_steps:,} steps from the {self.start}"


@dataclass(frozen=True)
class _Batch:
    """One batch to estimate, and what it needs."""

    vae: Any
    columns: tuple[Tensor, ...]
    first: int
    seed: int
    how: Estimation
    captured: Any

    @property
    def draws(self) -> dict[str, Any]:
        how, rows = self.how, self.first + torch.arange(len(self.columns[0]))
        chunk = min(CHUNK_ROWS, Inputs(*self.columns).chunk)
        sizes = {"num_samples": how.num_samples, "target_se": how.target_se, "max_samples": how.max_samples}
        return sizes | {"seed": self.seed, "data_ids": rows, "chunk_rows": chunk, "compile": self.captured}

    @property
    def chains(self) -> dict[str, Any]:
        how = self.how
        words = {name: getattr(how, name) for name in ("num_chains", "num_steps", "start", "path")}
        return words | {"compile": self.captured, "seed": parallel.stream_seed(self.seed, self.first)}


def _importance(batch: _Batch) -> Estimate:
    return evidence.importance_sampling(batch.vae.model, batch.vae.guide, *batch.columns, **batch.draws)


def _prior(batch: _Batch) -> Estimate:
    return evidence.prior_sampling(batch.vae.model, *batch.columns, **batch.draws)


def _refined(batch: _Batch) -> Estimate:
    options = batch.draws | {"compile": False}  # each batch has a guide of its own
    return evidence.refined_importance_sampling(
        batch.vae.model, batch.vae.guide, *batch.columns, steps=batch.how.refine_steps, **options
    )


def _annealed(batch: _Batch) -> Estimate:
    return evidence.annealed_importance_sampling(batch.vae.model, batch.vae.guide, *batch.columns, **batch.chains)


def _bidirectional(batch: _Batch) -> Bracket:
    return evidence.bidirectional(batch.vae.model, batch.vae.guide, *batch.columns, **batch.chains)


#: Estimators of the command line. ``smoothed`` is ``importance`` read by its smoothed weights.
ESTIMATORS: dict[str, Callable[[_Batch], Any]] = {
    "importance": _importance,
    "smoothed": _importance,
    "prior": _prior,
    "refined": _refined,
    "annealed": _annealed,
    "bidirectional": _bidirectional,
}
#: Those that draw K samples, and those that run chains.
DRAWN, CHAINED = ("importance", "smoothed", "prior", "refined"), ("annealed", "bidirectional")


def estimate(
    vae: Any,
    data: Inputs | Tensor | Stored | tuple[Tensor | Stored, ...],
    how: Estimation,
    seed: int,
    progress: bool = False,
) -> Any:
    """Log p(x) of data, in batches; all processes of a job share them, and find what one process finds.

    Args:
        vae: The model.
        data: Images, shape ``(N, *data_shape)``, or the columns that the model takes; ``bidirectional`` simulates as many, of
            which they give the shape.
        how: The estimator.
        seed: Seed of the draws, together with the parameters: the draws of two models are independent, as comparing them asks.
        progress: Whether to show a bar on a terminal.

    Returns:
        An ``Estimate``, or a ``Bracket`` for ``bidirectional``, with a row for each image.

    Raises:
        ValueError: If the model's objective is no bound on log p(x).
    """
    if not has_bound(vae):
        raise ValueError(
            f"log p(x): expected a model that has one, got {type(vae).__name__}, which is trained for its squared error alone; "
            "take a vae."
        )
    columns = Inputs.of(data)
    size = min(BATCH, columns.chunk)
    count = math.ceil(len(columns) / size)
    turns = tqdm(
        parallel.local_indices(count),
        total=math.ceil(count / parallel.world().size),
        disable=None if progress else True,
        unit="batch",
        leave=False,
        desc=f"log p(x), {how.estimator}",
    )
    vae.eval()
    seed = parallel.stream_seed(seed, 1 + checksum(vae.parameters()))
    captured = _captured(vae, len(columns), how)
    parts = []
    with own_randomness(seed), parallel.shared_errors():
        for number in turns:
            if number is not None:
                rows = columns[number * size : (number + 1) * size]
                parts.append(ESTIMATORS[how.estimator](_Batch(vae, rows, number * size, seed, how, captured)))
    parts = parallel.merge_batches(parts)
    return type(parts[0]).cat(parts)


def estimate_batch(vae: Any, columns: tuple[Tensor, ...], how: Estimation, seed: int = 0) -> Any:
    """Log p(x) of one batch, by this process alone; see :func:`estimate`."""
    return ESTIMATORS[how.estimator](_Batch(vae, columns, 0, seed, how, False))


def _captured(vae: Any, num_data: int, how: Estimation) -> Any:
    chained = how.estimator in CHAINED
    calls = 3 * 5 * how.num_chains * how.num_steps if chained else how.num_samples  # backward, and leapfrog steps
    flops = 2.0 * sum(p.numel() for p in vae.parameters()) * num_data * calls
    wanted = compiler.repays(flops, next(vae.parameters()).device) if how.compile is None else how.compile
    if not wanted:
        return False
    return CapturedPath() if chained else CapturedDraws()
