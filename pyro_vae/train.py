"""Train a variational autoencoder and report its log p(x) with error bars.

Two examples:
  python -m pyro_vae.train --elbo trace
  python -m pyro_vae.train --elbo mean-field --dataset mnist --latent-dim 50 --anneal linear:0:2000
"""

from __future__ import annotations

from pyro_vae.system.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal("pyro_vae.train")  # the imports below take seconds

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pyro_vae import parallel
from pyro_vae.cli import command, train_arguments
from pyro_vae.cli.training_session import Session
from pyro_vae.runs import sweep
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import RunDirectory
from pyro_vae.runs.progress import Console
from pyro_vae.system import devices, threads
from pyro_vae.system.signals import Signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments of the command; None for ``sys.argv[1:]``.

    Returns:
        The exit code: 0; 2 for bad input; 1 for a non-finite loss or a failed device; 128 + the number of a signal (130 for
        Ctrl-C).
    """
    return command.run("pyro_vae.train", _train, argv, "before training began.")


def _train(words: Sequence[str], signals: Signals, held: ExitStack) -> int:
    with command.input_errors():
        with parallel.shared_errors():
            given = train_arguments.read(words, __doc__)
            if "resume" in given and parallel.world().is_main:
                held.enter_context(RunDirectory(given["resume"]).held())
            config, options, checkpoint = train_arguments.complete(given)
            threads.set_threads(options.threads)
            device, device_text = devices.resolve_device(parallel.device_name(options.device))
        parallel.set_device(device)
        session = Session(device, device_text, Console(options.quiet), signals)
        if options.beta_sweep:
            _sweep(session, config, options)
            return 0
    session.run(config, options, checkpoint)
    return 0


def _sweep(session: Session, config: Config, options: train_arguments.Options) -> None:
    """Train one run for each KL weight of a sweep.

    If a run was interrupted, it is resumed.
    """
    if options.resume is not None:
        raise ValueError(
            "--beta-sweep: cannot be combined with --resume; to resume a sweep, repeat its command without --resume."
        )

    def train_or_resume(config: Config, folder: Path) -> None:
        if options.overwrite or not (folder / "checkpoint.pt").is_file():
            session.run(config, dataclasses.replace(options, run_dir=folder))
            return
        with RunDirectory(folder).held():
            checkpoint, before = RunDirectory(folder).begun()
            if config.train.compile is None:
                config = dataclasses.replace(
                    config, train=dataclasses.replace(config.train, compile=before.train.compile)
                )
            train_arguments.check_resumed(config, before, folder)
            session.run(config, dataclasses.replace(options, run_dir=None, resume=folder), checkpoint)

    sweep.run(options.beta_sweep, config, options.run_dir, options.overwrite, session.console, train_or_resume)


if __name__ == "__main__":
    sys.exit(main())
