"""Handling of signals that end the process, at once or later."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

#: SIGINT is Ctrl-C. SIGTERM is the request to end that a system or scheduler sends. SIGUSR1, if the platform has it, is
#: the warning that batch systems send before SIGTERM.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """The exception raised when a signal asks the process to end.

    Attributes:
        signal: The signal that the process received.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class Signals:
    """Handler of signals that ask the process to end.

    Calling the handler returns True if a deferred signal has been received.

    Attributes:
        caught: The first signal received inside :meth:`deferred`, or None.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._deferred = False

    def __call__(self) -> bool:
        return self.caught is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the ``with`` block, store the first signal instead of raising.

        A later Ctrl-C raises :class:`Interrupted`.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Store a deferred signal, or raise :class:`Interrupted`."""
        if self._deferred and self.caught is None:
            self.caught = signal.Signals(number)
        elif not self._deferred or number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # the next signal ends the process at once
            raise Interrupted(number)


@contextlib.contextmanager
def handled_signals() -> Iterator[Signals]:
    """Raise :class:`Interrupted` for signals received inside the ``with`` block.

    ``NAMES`` lists the signals. Inside :meth:`Signals.deferred`, the exception is not raised at once. A signal that the
    process already ignored stays ignored. Outside the main thread, Python allows no signal handlers, so this function
    does nothing.

    Yields:
        The handler of the signals.
    """
    signals = Signals()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    stack.callback(signal.signal, number, signal.signal(number, signals.handle))
        yield signals


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that caused an exception.

    For a ``KeyboardInterrupt`` that is not :class:`Interrupted`, this is SIGINT.
    """
    return stop.signal if isinstance(stop, Interrupted) else signal.SIGINT


def exit_on_signal(command: str) -> None:
    """Set handlers that end the process with a message and exit code.

    The handlers are needed while torch is imported, which takes seconds. Later, :func:`handled_signals` replaces them.
    This module itself does not import torch.

    Args:
        command: The name of the command, at the start of the message.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        if os.environ.get("RANK", "0") == "0":  # only one process of a job prints
            sys.stderr.write(f"{command}: stopped by {signal.Signals(number).name} before it began.\n")
            sys.stderr.flush()
        os._exit(128 + number)  # an import could catch an exception, or be left half done

    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)
