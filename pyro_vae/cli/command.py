"""The skeleton of a command: version, signals, processes, errors and exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pyro_vae import parallel
from pyro_vae.cli import terminal
from pyro_vae.system.signals import Signals, handled_signals, signal_of

#: A command: its words, the signals it may wait with, and a stack of contexts that close when it ends; the exit code.
Body = Callable[[Sequence[str], Signals, ExitStack], int]


class Exit(Exception):
    """End the command with a message and an exit code.

    Args:
        message: One sentence or two, for stderr.
        code: The exit code: 2 for bad input, 1 for a failure, 128 + the number of a signal.
    """

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


@contextmanager
def input_errors() -> Iterator[None]:
    """End the command with one sentence and code 2 on wrong input.

    An error of the device counts as one of the input.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except terminal.ERRORS as error:
        raise Exit(f"error: {terminal.sentence(error)}", 2) from None


@terminal.any_encoding()
def run(name: str, body: Body, words: Sequence[str] | None, stopped: str) -> int:
    """Run a command.

    Args:
        name: Its module, which opens every message.
        body: The command itself.
        words: The words of the command line; None: those of the process.
        stopped: The end of the message "stopped by SIGTERM ..." after a signal.

    Returns:
        The exit code: that of ``body``, or of the :class:`Exit` or signal that ended it.
    """
    words = sys.argv[1:] if words is None else words
    with parallel.only_main_prints(), handled_signals() as signals, warning_lines(name), ExitStack() as held:
        if "--version" in words:
            print(terminal.versions(), flush=True)
            return 0
        try:
            held.enter_context(parallel.process_group())
            return body(words, signals, held)
        except KeyboardInterrupt as stop:
            end = Exit(f"stopped by {signal_of(stop).name} {stopped}", 128 + signal_of(stop))
        except Exit as stop:
            end = stop
        print(f"{name}: {end}", file=sys.stderr)
        return end.code


@contextmanager
def warning_lines(name: str) -> Iterator[None]:
    """Print a warning as one line, without its place in the source."""

    def one_line(message: Warning | str, *_place: object, **_line: object) -> str:
        return f"{name}: warning: {message}\n"

    usual, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual
