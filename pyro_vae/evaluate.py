"""Evaluate finished runs: log p(x) of their test data by one of six estimators, with error bars; compare several.

Four examples:
  python -m pyro_vae.evaluate runs/mnist-trace-20260101-120000 --num-samples 5000
  python -m pyro_vae.evaluate runs/mnist --target-se 0.05 --max-samples 100000
  python -m pyro_vae.evaluate runs/mnist --estimator annealed --num-data 100
  python -m pyro_vae.evaluate runs/one runs/two --device cpu
"""

from __future__ import annotations

from pyro_vae.system.signals import listen

if __name__ == "__main__":
    listen("pyro_vae.evaluate")  # the imports below take seconds

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from pyro_vae import parallel
from pyro_vae.cli import parser, terminal
from pyro_vae.cli.evaluate_arguments import SLOW_DATA, Arguments
from pyro_vae.runs.directory import RunDirectory
from pyro_vae.runs.evaluation import comparison, evaluation
from pyro_vae.runs.evaluation.estimators import CHAINED, Estimation
from pyro_vae.runs.progress import Console
from pyro_vae.runs.run import load
from pyro_vae.system import compiler, devices, threads
from pyro_vae.system.files import try_out
from pyro_vae.system.signals import listening, signal_of


@terminal.any_encoding()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words of the command line; None: those of the process.

    Returns:
        The exit code: 0, 2 for bad input, or 128 + the number of a signal (130 for Ctrl-C).
    """
    argv = sys.argv[1:] if argv is None else argv
    with parallel.only_main_prints(), listening(), ExitStack() as within:
        if "--version" in argv:
            print(terminal.versions())
            return 0
        try:
            within.enter_context(parallel.process_group())
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
        with parallel.shared_errors():
            args = parser.parse(Arguments, argv, prog="python -m pyro_vae.evaluate", description=__doc__)
            console = Console(args.quiet)
            if not args.runs:
                raise ValueError("runs: expected the folder of at least one run, got none.")
            threads.set_threads(args.threads)
            device, words = devices.resolve_device(parallel.device_name(args.device))
            request = _request(args)
            if args.compile and (reason := compiler.obstacle()) is not None:
                raise ValueError(f"compile: expected a machine that can compile, got one where {reason}; leave it out.")
            comparison.names_of(args.runs)
            runs = [load(path) for path in args.runs]
            console.line(f"{terminal.versions()}, device {words}{parallel.world()}, {torch.get_num_threads()} threads")
            for run in runs if parallel.world().is_main else ():
                within.enter_context(RunDirectory(run.path).held())
                try_out(run.path, 0)
        parallel.set_device(device)
        with parallel.shared_errors():
            subjects = [evaluation.subject(run, request) for run in runs]
            if several := len(runs) > 1 and args.compare and args.estimator != "bidirectional":
                comparison.check_comparable(subjects)
        results = []
        for found in subjects:
            run = found.run
            console.line(
                f"{run.path}: {run.config.data.dataset}, {run.config.train.elbo}, epoch {run.history.best_epoch}"
            )
            with parallel.shared_errors():
                results.append(evaluation.evaluate(found, request, device, console))
        if several and parallel.world().is_main:
            comparison.compare(subjects, results, request, console)
    except BrokenPipeError:
        raise
    except terminal.ERRORS as error:
        print(f"pyro_vae.evaluate: error: {terminal.sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
