"""Train a variational autoencoder and report its log p(x) with error bars.

Two examples:
  python -m pyro_vae.train --elbo trace
  python -m pyro_vae.train --elbo mean-field --dataset mnist --latent-dim 50 --anneal linear:0:2000
"""

from __future__ import annotations

from pyro_vae.system.signals import listen

if __name__ == "__main__":
    listen("pyro_vae.train")  # the imports below take seconds

import dataclasses
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from pyro_vae import parallel
from pyro_vae.cli import terminal
from pyro_vae.cli.train_arguments import Options, parse, value_of
from pyro_vae.inference.svi.non_finite import NonFiniteLossError
from pyro_vae.inference.training.history import History
from pyro_vae.runs import pipeline, sweep
from pyro_vae.runs.build import Plan
from pyro_vae.runs.config import Config
from pyro_vae.runs.description import describe
from pyro_vae.runs.directory import RunDirectory, resuming, run_name
from pyro_vae.runs.progress import Console
from pyro_vae.system import devices, threads
from pyro_vae.system.files import fresh, made
from pyro_vae.system.signals import Interrupted, Signals, listening, signal_of


@terminal.any_encoding()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words of the command line; None: those of the process.

    Returns:
        The exit code: 0, 2 for bad input, 1 for a loss that is not finite or a device that gave way, 128 + the
            number of a signal (130 for Ctrl-C).
    """
    argv = sys.argv[1:] if argv is None else argv
    with parallel.only_main_prints(), listening() as signals, ExitStack() as within:
        if "--version" in argv:
            print(terminal.versions(), flush=True)
            return 0
        try:
            within.enter_context(parallel.process_group())
            return _command(argv, signals, within)
        except KeyboardInterrupt as stop:
            print(f"pyro_vae.train: stopped by {signal_of(stop).name} before training began.", file=sys.stderr)
            return 128 + signal_of(stop)


def _command(argv: Sequence[str], signals: Signals, within: ExitStack) -> int:
    """The command, within whose time the run's folder is held."""
    try:
        with parallel.shared_errors():
            if (folder := value_of("--resume", argv)) is not None and parallel.world().is_main:
                within.enter_context(RunDirectory(folder).held())
            config, options, checkpoint = parse(argv, __doc__)
            console = Console(options.quiet)
            threads.set_threads(options.threads)
            device, words = devices.resolve_device(parallel.device_name(options.device))
        parallel.set_device(device)
        if options.beta_sweep:
            return _sweep(argv, config, options, console, signals)
        with parallel.shared_errors():
            prepared = pipeline.prepare(config, device, checkpoint)
        directory = _shared_directory(prepared, options, within)
    except BrokenPipeError:
        raise
    except terminal.ERRORS as error:
        print(f"pyro_vae.train: error: {terminal.sentence(error)}", file=sys.stderr)
        return 2
    console.line(describe(prepared, f"{words}{parallel.world()}"))
    usual, warnings.formatwarning = warnings.formatwarning, _format_warning
    try:
        return _run(prepared, directory, console, signals)
    finally:
        warnings.formatwarning = usual


def _sweep(argv: Sequence[str], config: Config, options: Options, console: Console, signals: Signals) -> int:
    """A run for each weight, each an ordinary one in a folder of its own; then the table and the plot."""
    if (size := parallel.world().size) > 1:
        raise ValueError(
            f"--beta-sweep: expected one process, got {size}; train each weight by a command of its own, with --beta."
        )
    sweep.check(options.beta_sweep, config)
    if options.resume is not None:
        raise ValueError(
            "--beta-sweep: expected without --resume, got both; give the sweep's own command again to go on."
        )
    for beta in (min(options.beta_sweep), max(options.beta_sweep)):  # what is wrong is said before anything is written
        prepared = pipeline.prepare(sweep.with_beta(config, beta), torch.device("cpu"))
    training = dataclasses.replace(config.train, elbo=prepared.config.train.elbo)
    config = dataclasses.replace(prepared.config, train=training)  # as each of its runs will say
    name, rows = f"{run_name(config)}-sweep", []
    with fresh(Path("runs"), name) if options.run_dir is None else made(options.run_dir) as folder:
        sweep.check_folder(folder)
        words = _without(_without(argv, "--beta-sweep"), "--run-dir")
        for beta in sorted(options.beta_sweep):
            run = folder / sweep.name_of(beta)
            if options.overwrite or sweep.finished(run, sweep.with_beta(config, beta)) is None:
                going_on = (run / "checkpoint.pt").is_file() and not options.overwrite
                with ExitStack() as within:
                    where = "--resume" if going_on else "--run-dir"
                    code = _command([*words, "--beta", repr(beta), where, str(run)], signals, within)
                if code != 0:
                    return code
            rows.append(sweep.row_of(beta, RunDirectory(run).read_json("summary.json"), run.name))
        sweep.write(folder, rows, f"Rate and distortion: {run_name(config)}")
        console.line(f"{sweep.table(rows)}\n{folder}: {sweep.TABLE}, {sweep.PICTURE}")
    return 0


def _without(argv: Sequence[str], flag: str) -> list[str]:
    """The words without a flag and its values."""
    kept, dropping = [], False
    for word in argv:
        if word.startswith("--"):
            dropping = word.split("=")[0] == flag
        if not dropping:
            kept.append(word)
    return kept


def _shared_directory(prepared: Plan, options: Options, within: ExitStack) -> RunDirectory:
    """The run's folder: claimed by one process, known to all."""
    claimed = None
    with parallel.shared_errors():
        if parallel.world().is_main:
            claimed = within.enter_context(_directory(prepared, options))
    directory = parallel.all_gather(claimed)[0]
    assert directory is not None  # rank 0 has claimed it
    return dataclasses.replace(directory, writes=parallel.world().is_main)


@contextmanager
def _directory(prepared: Plan, options: Options) -> Iterator[RunDirectory]:
    if options.resume is None:
        with RunDirectory.claim(
            options.run_dir, run_name(prepared.config), options.overwrite, prepared.disk_bytes
        ) as directory:
            yield directory
        return
    if options.run_dir is not None or options.overwrite:
        flag = "--overwrite" if options.overwrite else "--run-dir"
        raise ValueError(
            f"{flag}: expected without --resume, which goes on in the run's own folder, got both; drop one."
        )
    directory = RunDirectory(options.resume)
    directory.reopen(prepared.disk_bytes)
    yield directory


def _run(prepared: Plan, directory: RunDirectory, console: Console, signals: Signals) -> int:
    history = None
    try:
        with signals.waiting():
            history, seconds = pipeline.train(prepared, directory, console, signals)
            pipeline.load_libraries()  # not to be broken off in the middle
        if (caught := parallel.first_given(signals.caught)) is not None:
            raise Interrupted(caught)
        pipeline.finish(prepared, history, directory, seconds, console)
    except (NonFiniteLossError, parallel.JobError) as error:
        print(f"pyro_vae.train: {error} {_what_is_kept(directory)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        print(f"pyro_vae.train: whoever read the output has closed it. {_what_is_kept(directory)}", file=sys.stderr)
        raise
    except OSError as error:
        print(
            f"pyro_vae.train: error: the run's files cannot be written: {error}. {_what_is_kept(directory)}",
            file=sys.stderr,
        )
        return 2
    except (RuntimeError, TypeError, MemoryError) as error:
        print(
            f"pyro_vae.train: error: {terminal.sentence(error, TypeError)} {_what_is_kept(directory)}", file=sys.stderr
        )
        return 1 if (directory.path / "checkpoint.pt").exists() else 2
    except KeyboardInterrupt as stop:
        print(f"pyro_vae.train: stopped by {signal_of(stop).name} {_where(history, directory)}", file=sys.stderr)
        return 128 + signal_of(stop)
    return 0


def _where(history: History | None, directory: RunDirectory) -> str:
    """Where a signal stopped the run, and what is kept of it."""
    if history is None:
        there = (directory.path / "checkpoint.pt").exists()
        return f"at once. {_what_is_kept(directory)}" + ("" if there else f" {resuming(directory.path)} begins again.")
    if history.stopped_by != "interrupted":
        return f"after training: all of it is saved; for figures and pictures go on with {resuming(directory.path)}"
    whole = history.rows[-1]["step"] if history.rows else 0
    where = f"after epoch {len(history)}" if history.steps == whole else f"in epoch {len(history) + 1}"
    return f"{where}, step {history.steps}: saved; go on with {resuming(directory.path)}"


def _what_is_kept(directory: RunDirectory) -> str:
    if not (directory.path / "checkpoint.pt").exists():
        return f"No epoch was finished; there is no checkpoint in {directory.path}."
    return f"The last checkpoint is kept: go on with {resuming(directory.path)}"


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A sentence for the user of a command, who has no use for a line of our source."""
    return f"pyro_vae.train: warning: {message}\n"


if __name__ == "__main__":
    sys.exit(main())
