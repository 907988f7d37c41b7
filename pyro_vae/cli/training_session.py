"""The runs of one ``train`` command, from folder to final message."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from pyro_vae import parallel
from pyro_vae.cli import terminal
from pyro_vae.cli.command import Exit, input_errors
from pyro_vae.cli.train_arguments import Options
from pyro_vae.inference.svi.non_finite import NonFiniteLossError
from pyro_vae.inference.training.history import History
from pyro_vae.runs import pipeline
from pyro_vae.runs.build import Plan
from pyro_vae.runs.config import Config
from pyro_vae.runs.description import describe
from pyro_vae.runs.directory import Checkpoint, RunDirectory, resuming, run_name
from pyro_vae.runs.progress import Console
from pyro_vae.system.signals import Interrupted, Signals, signal_of


@dataclass(frozen=True)
class Session:
    """Settings that all runs of one command share.

    Attributes:
        device: Device of the runs.
        device_text: Description of the device.
        console: Object that prints lines and progress bars.
        signals: Signal handler that waits for the end of the current training step.
    """

    device: torch.device
    device_text: str
    console: Console
    signals: Signals

    def run(self, config: Config, options: Options, checkpoint: Checkpoint | None = None) -> None:
        """Train one run, evaluate it, and draw its pictures.

        Args:
            config: The configuration of the run.
            options: The options of the command, which name the folder of the run.
            checkpoint: The checkpoint to resume from; None for a new run.

        Raises:
            Exit: If the input is wrong, training fails, or a signal stops the run.
        """
        with ExitStack() as held:
            with input_errors():
                with parallel.shared_errors():
                    plan = pipeline.prepare(config, self.device, checkpoint)
                directory = _shared_directory(plan, options, held)
            self.console.line(describe(plan, f"{self.device_text}{parallel.world()}"))
            self._train(plan, directory)

    def _train(self, plan: Plan, directory: RunDirectory) -> None:
        history = None
        try:
            with self.signals.deferred():
                history, seconds = pipeline.train(plan, directory, self.console, self.signals)
                pipeline.load_libraries()  # an interrupted import could leave a library half loaded
            if (caught := parallel.first_given(self.signals.caught)) is not None:
                raise Interrupted(caught)
            pipeline.finish(plan, history, directory, seconds, self.console)
        except KeyboardInterrupt as stop:
            number = signal_of(stop)
            raise Exit(f"stopped by {number.name} {_where(history, directory)}", 128 + number) from None
        except BrokenPipeError:
            print(
                f"pyro_vae.train: the process that reads the output has closed the pipe. {_kept(directory)}",
                file=sys.stderr,
            )
            raise
        except (NonFiniteLossError, parallel.JobError) as error:
            raise Exit(f"{error} {_kept(directory)}", 1) from None
        except OSError as error:
            raise Exit(f"error: the run's files cannot be written: {error}. {_kept(directory)}", 2) from None
        except (RuntimeError, TypeError, MemoryError) as error:
            text = terminal.sentence(error, TypeError)
            raise Exit(f"error: {text} {_kept(directory)}", 1 if _has_checkpoint(directory) else 2) from None


def _shared_directory(plan: Plan, options: Options, held: ExitStack) -> RunDirectory:
    """Claim the run's folder in one process; return it in all processes."""
    claimed = None
    with parallel.shared_errors():
        if parallel.world().is_main:
            claimed = held.enter_context(_directory(plan, options))
    directory = parallel.all_gather(claimed)[0]
    assert directory is not None  # rank 0 has claimed it
    return dataclasses.replace(directory, writes=parallel.world().is_main)


@contextmanager
def _directory(plan: Plan, options: Options) -> Iterator[RunDirectory]:
    if options.resume is None:
        name, needed = run_name(plan.config), plan.disk_bytes
        with RunDirectory.claim(options.run_dir, name, options.overwrite, needed) as directory:
            yield directory
        return
    if options.run_dir is not None or options.overwrite:
        flag = "--overwrite" if options.overwrite else "--run-dir"
        raise ValueError(
            f"{flag}: cannot be combined with --resume, which writes to the run's own folder; remove one of the two flags."
        )
    directory = RunDirectory(options.resume)
    directory.reopen(plan.disk_bytes)
    yield directory


def _where(history: History | None, directory: RunDirectory) -> str:
    """Describe where a signal stopped the run, and what is already saved."""
    resume = resuming(directory.path)
    if history is None:
        return f"at once. {_kept(directory)}" + ("" if _has_checkpoint(directory) else f" {resume} begins again.")
    if history.stopped_by != "interrupted":
        return f"after training: the trained model is saved; for results and pictures go on with {resume}"
    whole = history.rows[-1]["step"] if history.rows else 0
    where = f"after epoch {len(history)}" if history.steps == whole else f"in epoch {len(history) + 1}"
    return f"{where}, step {history.steps}: saved; go on with {resume}"


def _kept(directory: RunDirectory) -> str:
    if not _has_checkpoint(directory):
        return f"No epoch was finished; there is no checkpoint in {directory.path}."
    return f"The last checkpoint is kept: go on with {resuming(directory.path)}"


def _has_checkpoint(directory: RunDirectory) -> bool:
    return (directory.path / "checkpoint.pt").exists()
