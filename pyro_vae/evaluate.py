"""Evaluate finished runs: log p(x) of their test data by one of six estimators, with error bars; compare several.

Four examples:
  python -m pyro_vae.evaluate runs/mnist-trace-20260101-120000 --num-samples 5000
  python -m pyro_vae.evaluate runs/mnist --target-se 0.05 --max-samples 100000
  python -m pyro_vae.evaluate runs/mnist --estimator annealed --num-data 100
  python -m pyro_vae.evaluate runs/one runs/two --device cpu
"""

from __future__ import annotations

from pyro_vae import starting

if __name__ == "__main__":
    starting.listen("pyro_vae.evaluate")  # the imports below take seconds

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from pyro_vae import comparing, compiling, console, evaluation, machine, parallel, pipeline, threads
from pyro_vae.claim import try_out
from pyro_vae.estimation import CHAINED, Estimation
from pyro_vae.interruptions import listening, signal_of
from pyro_vae.runs import RunDirectory, load

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


def _request(args: Arguments) -> evaluation.Request:
    """What the words ask for."""
    names = (
        "estimator",
        "target_se",
        "max_samples",
        "num_chains",
        "num_steps",
        "start",
        "path",
        "refine_steps",
        "compile",
    )
    if args.num_samples is not None and (args.target_se is not None or args.estimator in CHAINED):
        why = "--target-se, which chooses them" if args.target_se is not None else f"--estimator {args.estimator}"
        raise ValueError(f"num_samples: expected without {why}, got both; drop one.")
    how = Estimation(**{name: getattr(args, name) for name in names})
    how = how if args.num_samples is None else dataclasses.replace(how, num_samples=args.num_samples)
    slow = args.estimator in (*CHAINED, "refined")
    num_data = SLOW_DATA if args.num_data is None and slow else args.num_data
    return evaluation.Request(how, args.num_samples, num_data, args.dequantize, args.checks)


def _command(argv: Sequence[str], within: ExitStack) -> int:
    try:
        with parallel.together():
            args = console.parse(Arguments, argv, prog="python -m pyro_vae.evaluate", description=__doc__)
            say = pipeline.silent if args.quiet else print
            if not args.runs:
                raise ValueError("runs: expected the folder of at least one run, got none.")
            threads.set_threads(args.threads)
            device, words = machine.resolve_device(parallel.device_name(args.device))
            request = _request(args)
            if args.compile and (reason := compiling.obstacle()) is not None:
                raise ValueError(f"compile: expected a machine that can compile, got one where {reason}; leave it out.")
            comparing.names_of(args.runs)
            runs = [load(path) for path in args.runs]
            say(f"{console.versions()}, device {words}{parallel.world()}, {torch.get_num_threads()} threads")
            for run in runs if parallel.world().main else ():
                within.enter_context(RunDirectory(run.path).held())
                try_out(run.path, 0)
        parallel.take_device(device)
        with parallel.together():
            subjects = [evaluation.subject(run, request) for run in runs]
            if several := len(runs) > 1 and args.compare and args.estimator != "bidirectional":
                comparing.check_comparable(subjects)
        results = []
        for found in subjects:
            run = found.run
            say(f"{run.path}: {run.config.data.dataset}, {run.config.train.elbo}, epoch {run.history.best_epoch}")
            with parallel.together():
                results.append(evaluation.evaluate(found, request, device, say))
        if several and parallel.world().main:
            comparing.compare(subjects, results, request, say)
    except BrokenPipeError:
        raise
    except console.ERRORS as error:
        print(f"pyro_vae.evaluate: error: {console.sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
