"""Evaluate finished runs: log p(x) of their test data, with error bars.

There are six estimators of log p(x). Runs with the same test data are compared.

Four examples:
  python -m pyro_vae.evaluate runs/mnist-trace-20260101-120000 --num-samples 5000
  python -m pyro_vae.evaluate runs/mnist --target-se 0.05 --max-samples 100000
  python -m pyro_vae.evaluate runs/mnist --estimator annealed --num-data 100
  python -m pyro_vae.evaluate runs/one runs/two --device cpu
"""

from __future__ import annotations

from pyro_vae.system.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal("pyro_vae.evaluate")  # the imports below take seconds

import sys
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from pyro_vae import parallel
from pyro_vae.cli import command, parser, terminal
from pyro_vae.cli.evaluate_arguments import NAMES, Arguments
from pyro_vae.runs.directory import RunDirectory
from pyro_vae.runs.evaluation import comparison, evaluation
from pyro_vae.runs.evaluation.subject import load_subject
from pyro_vae.runs.progress import Console
from pyro_vae.runs.run import load
from pyro_vae.system import compiler, devices, threads
from pyro_vae.system.files import check_writable
from pyro_vae.system.signals import Signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments of the command; None for ``sys.argv[1:]``.

    Returns:
        The exit code: 0, 2 for bad input, or 128 + the number of a signal (130 for Ctrl-C).
    """
    return command.run("pyro_vae.evaluate", _evaluate, argv, "before the end; figures not yet computed are unchanged.")


def _evaluate(argv: Sequence[str], _signals: Signals, held: ExitStack) -> int:
    with command.input_errors():
        with parallel.shared_errors():
            prog = "python -m pyro_vae.evaluate"
            args = parser.parse(Arguments(), argv, prog=prog, description=__doc__, names=NAMES)
            console = Console(args.quiet)
            args.check_runs()
            threads.set_threads(args.threads)
            device, device_text = devices.resolve_device(parallel.device_name(args.device))
            request = args.request()
            if args.compile and (reason := compiler.obstacle()) is not None:
                raise ValueError(f"compile: this machine cannot compile, since {reason}; remove --compile.")
            comparison.shortest_names(args.runs)
            runs = [load(path) for path in args.runs]
            device_text += f"{parallel.world()}, {torch.get_num_threads()} threads"
            console.line(f"{terminal.versions()}, device {device_text}")
            for run in runs if parallel.world().is_main else ():
                held.enter_context(RunDirectory(run.path).held())
                check_writable(run.path, 0)
        parallel.set_device(device)
        with parallel.shared_errors():
            subjects = [load_subject(run, request) for run in runs]
            if several := len(runs) > 1 and args.compare and not request.how.row.simulates:
                comparison.check_comparable(subjects)
        results = []
        for subject in subjects:
            config, epoch = subject.run.config, subject.run.history.best_epoch
            console.line(f"{subject.run.path}: {config.data.dataset}, {config.train.elbo}, epoch {epoch}")
            with parallel.shared_errors():
                results.append(evaluation.evaluate(subject, request, device, console))
        if several and parallel.world().is_main:
            comparison.compare(subjects, results, request, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
