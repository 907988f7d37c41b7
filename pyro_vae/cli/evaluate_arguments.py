"""The flags of ``python -m pyro_vae.evaluate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from pyro_vae.lookup import lookup
from pyro_vae.runs.evaluation.checks import CHECKS
from pyro_vae.runs.evaluation.estimators import ESTIMATORS, SLOW_DATA, Estimation
from pyro_vae.runs.evaluation.subject import Request

#: Names that help texts list: estimators and checks, each with a short description; and for each option, the estimators that
#: use the option.
NAMES = {
    "estimator": [f"{name} ({row.help})" for name, row in ESTIMATORS.items()],
    "checks": [f"{name} ({row.help})" for name, row in CHECKS.items()],
    "num_data": [name for name, row in ESTIMATORS.items() if row.slow],
} | {
    option: [name for name, row in ESTIMATORS.items() if option in row.options]
    for option in ("num_chains", "num_steps", "start", "path", "refine_steps")
}


@dataclass(frozen=True)
class Arguments:
    """The values of the command's flags and arguments."""

    runs: tuple[Path, ...] = field(default=(), metadata={"positional": True})
    """Folders of finished runs; runs with the same test data are compared."""
    estimator: str = "importance"
    """Estimator of log p(x): {names}."""
    num_samples: int | None = None
    """Importance samples for each image;
    default: as many as the run was evaluated with."""
    target_se: float | None = None
    """Standard error to reach for each image, nats;
    a pilot chooses the number of samples."""
    max_samples: int = 100_000
    """Largest number of samples for one image with --target-se."""
    num_data: int | None = None
    """Evaluate only this many test images, the first ones;
    default: all, or 100 for {names}."""
    num_chains: int = 16
    """Chains for each image; for {names}."""
    num_steps: int = 500
    """Steps of a chain; for {names}."""
    start: str = "guide"
    """Distribution from which chains start, prior or guide; for {names}."""
    path: str = "sigmoid"
    """Spacing of the steps of a chain, sigmoid or geometric; for {names}."""
    refine_steps: int = 200
    """Steps of Adam on the guide of each image; for {names}."""
    dequantize: str = "none"
    """Noise on 8-bit pixels, none or uniform;
    with noise, a density has bits per dimension."""
    checks: tuple[str, ...] = ()
    """Checks to make: {names}."""
    compare: bool = True
    """Compare several runs."""
    compile: bool | None = None
    """Compile what is evaluated many times;
    default: if the evaluation is long enough to repay it."""
    device: str = "auto"
    """Device: auto (a GPU if one works), cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: as many as this process may use."""
    quiet: bool = False
    """Print only errors; the figures are in summary.json."""
    version: bool = False
    """Print the version and exit."""

    def check_runs(self) -> None:
        """Check that the command line names at least one run.

        Raises:
            ValueError: If no run is given; if a folder was read as a value of ``--checks``, the message says so.
        """
        if not self.runs:
            folder = next((name for name in self.checks if name not in CHECKS), None)
            remedy = (
                "name a folder." if folder is None else f"--checks took {folder!r}; put the folders before --checks."
            )
            raise ValueError(f"runs: expected the folder of at least one run, got none; {remedy}")

    def request(self) -> Request:
        """Return the evaluation that these arguments describe.

        Raises:
            ValueError: If the estimator is unknown, or ``num_samples`` is given together with ``target_se`` or with an
                estimator that does not use it.
        """
        row = lookup("estimator", self.estimator, ESTIMATORS)
        if self.num_samples is not None and (self.target_se is not None or "num_samples" not in row.options):
            if self.target_se is not None:
                raise ValueError("num_samples: --target-se chooses the number of samples; remove one of the two flags.")
            raise ValueError(f"num_samples: has no effect with --estimator {self.estimator}; remove --num-samples.")
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Estimation)}
        if self.num_samples is None:
            del shared["num_samples"]
        num_data = SLOW_DATA if self.num_data is None and row.slow else self.num_data
        return Request(Estimation(**shared), self.num_samples, num_data, self.dequantize, self.checks)
