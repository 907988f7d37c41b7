"""The frame of every command: version, signals, processes, errors and exit codes."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pyro_vae import parallel
from pyro_vae.cli import terminal
from pyro_vae.system.signals import Signals, handled_signals, signal_of

#: The function behind a command. It takes the command-line arguments, the signal handler, and a stack of contexts that are
#: closed when the command ends. It returns the exit code.
Body = Callable[[Sequence[str], Signals, ExitStack], int]


class Exit(Exception):
    """End the command with a message and an exit code.

    Args:
        message: The message for stderr, one or two sentences.
        code: The exit code: 2 for bad input, 1 for a failure, 128 + the number of a signal.
    """

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


@contextmanager
def input_errors() -> Iterator[None]:
    """End the command with exit code 2 if its input is wrong.

    The error message is one sentence. An error of the device counts as wrong input.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except terminal.ERRORS as error:
        raise Exit(f"error: {terminal.sentence(error)}", 2) from None


@terminal.any_encoding()
def run(name: str, body: Body, words: Sequence[str] | None, stopped: str) -> int:
    """Run a command and return its exit code.

    Args:
        name: Name of the command's module; every message starts with this name.
        body: The function behind the command.
        words: The command-line arguments; None for ``sys.argv[1:]``.
        stopped: Text that follows "stopped by SIGTERM" (or another signal) in the message about a signal.

    Returns:
        The exit code that ``body`` returns; the code of an :class:`Exit` that ``body`` raises; or 128 + the number of a signal.
    """
    words = sys.argv[1:] if words is None else words
    with parallel.only_main_prints(), handled_signals() as signals, warning_lines(name), ExitStack() as held:
        if "--version" in itertools.takewhile(lambda word: word != "--", words):
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
    """Print each warning on one line, without file name and line number."""

    def one_line(message: Warning | str, *_place: object, **_line: object) -> str:
        return f"{name}: warning: {message}\n"

    usual, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual
