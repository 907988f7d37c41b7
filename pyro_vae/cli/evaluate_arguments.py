"""The flags of `python -m pyro_vae.evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

#: How many test images the slow estimators look at where nothing is said.
SLOW_DATA = 100


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs; several on the same test data are compared."""
    estimator: Literal["importance", "smoothed", "prior", "refined", "annealed", "bidirectional"] = "importance"
    """importance (draws from the guide), smoothed (the same, by Pareto-smoothed weights), prior (draws from p(z)), refined
    (from a guide refined for each image), annealed (HMC chains), bidirectional (a bracket, on simulated images). One that
    does not suit the model is refused, and it is said which do."""
    num_samples: int | None = None
    """Importance samples for each image; default: what the run was evaluated with."""
    target_se: float | None = None
    """Choose the samples of each image by a pilot, so that its standard error is this many nats."""
    max_samples: int = 100_000
    """The most samples for one image with --target-se."""
    num_data: int | None = None
    """Only the first so many test images; default: all, and 100 for annealed, bidirectional and refined."""
    num_chains: int = 16
    """Chains for each image, annealed and bidirectional."""
    num_steps: int = 500
    """Steps of a chain."""
    start: Literal["prior", "guide"] = "guide"
    """Where chains start."""
    path: Literal["sigmoid", "geometric"] = "sigmoid"
    """How the steps of a chain are spaced."""
    refine_steps: int = 200
    """Steps of Adam on the guide of each image, refined."""
    dequantize: Literal["none", "uniform"] = "none"
    """uniform: add noise to 8-bit pixels, so that a density has bits per dimension."""
    checks: tuple[Literal["gaps", "aggregate", "calibration", "predictive"], ...] = ()
    """gaps (approximation and amortization, of 100 images), aggregate (mutual information, total correlation), calibration (of
    the guide, on simulated images), predictive (does the model make such images). Each is tried on a few images first; where
    one does not suit the model, nothing is estimated, and it is said which do."""
    compare: bool = True
    """Whether several runs are compared."""
    compile: bool | None = None
    """Whether to compile what is evaluated over and over; default: if it is long enough to repay that."""
    device: str = "auto"
    """auto (a GPU where one works), cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: as many as this process may use."""
    quiet: bool = False
    """Print nothing but errors; the figures are in summary.json."""
    version: bool = False
    """Print the version and leave."""
