"""The flags of ``python -m pyro_vae.evaluate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pyro_vae.runs.evaluation.estimators import CHAINED, Estimation
from pyro_vae.runs.evaluation.evaluation import Request

#: Test images that the slow estimators evaluate by default.
SLOW_DATA = 100


@dataclass(frozen=True)
class Arguments:
    """The values of the command line."""

    runs: tuple[Path, ...] = field(default=(), metadata={"positional": True})
    """Folders of finished runs; runs with the same test data are compared."""
    estimator: Literal["importance", "smoothed", "prior", "refined", "annealed", "bidirectional"] = "importance"
    """Estimator of log p(x): importance (draws from the guide), smoothed (the same with Pareto-smoothed weights), prior
    (draws from p(z)), refined (a guide refined for each image), annealed (HMC chains) or bidirectional (bounds from both
    sides, on simulated images)."""
    num_samples: int | None = None
    """Importance samples for each image; default: as many as the run was evaluated with."""
    target_se: float | None = None
    """Standard error to reach for each image, nats; a pilot chooses the number of samples."""
    max_samples: int = 100_000
    """Largest number of samples for one image with --target-se."""
    num_data: int | None = None
    """Evaluate only this many test images, the first ones; default: all, or 100 for annealed, bidirectional and refined."""
    num_chains: int = 16
    """Chains for each image; for annealed and bidirectional."""
    num_steps: int = 500
    """Steps of a chain; for annealed and bidirectional."""
    start: Literal["prior", "guide"] = "guide"
    """Distribution from which chains start; for annealed and bidirectional."""
    path: Literal["sigmoid", "geometric"] = "sigmoid"
    """Spacing of the steps of a chain; for annealed and bidirectional."""
    refine_steps: int = 200
    """Steps of Adam on the guide of each image; for refined."""
    dequantize: Literal["none", "uniform"] = "none"
    """Add uniform noise to 8-bit pixels, so that a density has bits per dimension."""
    checks: tuple[Literal["gaps", "aggregate", "calibration", "predictive"], ...] = ()
    """Checks to make: gaps (approximation and amortization gap of 100 images), aggregate (mutual information and total
    correlation), calibration (of the guide, on simulated images) and predictive (compare the data with images of the
    model)."""
    compare: bool = True
    """Compare several runs."""
    compile: bool | None = None
    """Compile what is evaluated many times; default: if the evaluation is long enough to repay it."""
    device: str = "auto"
    """Device: auto (a GPU if one works), cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: as many as this process may use."""
    quiet: bool = False
    """Print only errors; the figures are in summary.json."""
    version: bool = False
    """Print the version and exit."""

    def request(self) -> Request:
        """The evaluation that these values ask for.

        Raises:
            ValueError: If two of them exclude each other.
        """
        if self.num_samples is not None and (self.target_se is not None or self.estimator in CHAINED):
            other = "--target-se, which chooses them" if self.target_se is not None else f"--estimator {self.estimator}"
            raise ValueError(f"num_samples: expected without {other}, got both; drop one.")
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Estimation)}
        if self.num_samples is None:
            del shared["num_samples"]
        slow = self.estimator in (*CHAINED, "refined")
        num_data = SLOW_DATA if self.num_data is None and slow else self.num_data
        return Request(Estimation(**shared), self.num_samples, num_data, self.dequantize, self.checks)
