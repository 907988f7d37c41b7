"""Signals that end the process, at once or when nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

#: Ctrl-C, the request of a system or scheduler to end, and, where it exists, the warning that batch systems send before.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end at once.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class Signals:
    """The signals that came; calling it returns True after a deferred one.

    Attributes:
        caught: The first signal that came within :meth:`deferred`, or None.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._deferred = False

    def __call__(self) -> bool:
        return self.caught is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal inside.

        A Ctrl-C after it raises :class:`Interrupted`.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal, or raise :class:`Interrupted`: the handler of all signals."""
        if self._deferred and self.caught is None:
            self.caught = signal.Signals(number)
        elif not self._deferred or number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # the next one ends the process, whatever it is doing
            raise Interrupted(number)


@contextlib.contextmanager
def handled_signals() -> Iterator[Signals]:
    """Inside, the signals of ``NAMES`` raise :class:`Interrupted`, except where they are deferred.

    Signals that the process was started to ignore are left alone. Outside the main thread, where Python allows no
    handlers, nothing is changed.

    Yields:
        The signals, see :meth:`Signals.deferred`.
    """
    signals = Signals()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    stack.callback(signal.signal, number, signal.signal(number, signals.handle))
        yield signals


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Return the signal behind an exception; a plain ``KeyboardInterrupt`` was a Ctrl-C."""
    return stop.signal if isinstance(stop, Interrupted) else signal.SIGINT


def exit_on_signal(command: str) -> None:
    """Let a signal end the process with a line and exit code.

    This holds until other handlers are set.

    For the seconds in which torch is imported; this module needs none of it.

    Args:
        command: The first word of the line.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        if os.environ.get("RANK", "0") == "0":  # only one process of a job prints
            sys.stderr.write(f"{command}: stopped by {signal.Signals(number).name} before it began.\n")
            sys.stderr.flush()
        os._exit(128 + number)  # an exception within an import could be caught there, or break a library

    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)
