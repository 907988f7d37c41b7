"""Evaluate a finished run: its ELBO and importance-sampled log p(x) on the test data, with error bars.

Two examples:
  python -m pyro_vae.evaluate runs/mnist-trace-20260101-120000 --num-samples 5000
  python -m pyro_vae.evaluate runs/one runs/two --device cpu
"""

from __future__ import annotations

from pyro_vae import starting

if __name__ == "__main__":
    starting.listen("pyro_vae.evaluate")  # the imports below take seconds

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from pyro_vae import console, machine, parallel, pipeline, threads
from pyro_vae.claim import try_out
from pyro_vae.interruptions import listening, signal_of
from pyro_vae.runs import RunDirectory, load


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs."""
    num_samples: int | None = None
    """Importance samples for each datum; default: what the run was evaluated with."""
    device: str = "auto"
    """auto (a GPU where one works), cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: as many as this process may use."""
    quiet: bool = False
    """Print nothing but errors; the figures are in summary.json."""
    version: bool = False
    """Print the version and leave."""


@console.any_encoding()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words of the command line; None: those of the process.

    Returns:
        The exit code: 0, 2 for bad input, or 128 + the number of a signal (130 for Ctrl-C).
    """
    argv = sys.argv[1:] if argv is None else argv
    with parallel.one_voice(), listening(), ExitStack() as within:
        if "--version" in argv:
            print(console.versions())
            return 0
        try:
            within.enter_context(parallel.joined())
            return _command(argv, within)
        except KeyboardInterrupt as stop:
            print(
                f"pyro_vae.evaluate: stopped by {signal_of(stop).name}; figures not yet found are as they were.",
                file=sys.stderr,
            )
            return 128 + signal_of(stop)


def _command(argv: Sequence[str], within: ExitStack) -> int:
    try:
        with parallel.together():
            args = console.parse(Arguments, argv, prog="python -m pyro_vae.evaluate", description=__doc__)
            say = pipeline.silent if args.quiet else print
            if not args.runs:
                raise ValueError("runs: expected the folder of at least one run, got none.")
            threads.set_threads(args.threads)
            device, words = machine.resolve_device(parallel.device_name(args.device))
            runs = [load(path) for path in args.runs]
            say(f"{console.versions()}, device {words}{parallel.world()}, {torch.get_num_threads()} threads")
            for run in runs if parallel.world().main else ():
                within.enter_context(RunDirectory(run.path).held())
                try_out(run.path, 0)
        parallel.take_device(device)
        for run in runs:
            say(f"{run.path}: {run.config.data.dataset}, {run.config.train.elbo}, epoch {run.history.best_epoch}")
            with parallel.together():
                pipeline.reevaluate(run, device, args.num_samples, say)
    except BrokenPipeError:
        raise
    except console.ERRORS as error:
        print(f"pyro_vae.evaluate: error: {console.sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
