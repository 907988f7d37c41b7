"""Evaluate a finished run: its ELBO and importance-sampled log p(x) on the test data, with error bars.

Example:
  python -m pyro_vae.evaluate runs/mnist-trace-20260101-120000 --num-samples 5000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from pyro_vae import pipeline
from pyro_vae.runs import load


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    num_samples: int | None = None
    """Importance samples for each datum; default: what the run was evaluated with."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""
    quiet: bool = False
    """Print nothing but errors; the figures are in summary.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words of the command line; None: those of the process.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    args = tyro.cli(
        Arguments, args=None if argv is None else list(argv), prog="python -m pyro_vae.evaluate", description=__doc__
    )
    say = pipeline.silent if args.quiet else print
    try:
        if not args.runs:
            raise ValueError("runs: expected the folder of at least one run, got none.")
        pipeline.set_threads(args.threads)
        device, _ = pipeline.resolve_device(args.device)
        for run in [load(path) for path in args.runs]:
            say(f"{run.path}: {run.config.data.dataset}, {run.config.train.elbo}, epoch {run.history.best_epoch}")
            pipeline.reevaluate(run, device, args.num_samples, say)
    except (ValueError, TypeError, OSError) as error:
        print(f"pyro_vae.evaluate: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
