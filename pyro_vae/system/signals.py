"""Signals: leave at once, or at the next moment at which nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

#: Ctrl-C, the request to end of a system or scheduler, and, where it exists, the warning that batch systems send before.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to leave at once.

    Attributes:
        signal: Which.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class Signals:
    """What the signals asked for; called, it says whether one came while the process was willing to wait.

    Attributes:
        caught: The first signal that came while :meth:`waiting`, or None.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._waiting = False

    def __call__(self) -> bool:
        return self.caught is not None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the first signal is only noted; a Ctrl-C after it raises."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def handle(self, number: int, frame: Any) -> None:
        """The handler."""
        if self._waiting and self.caught is None:
            self.caught = signal.Signals(number)
        elif not self._waiting or number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # one more of these and the process ends, whatever it is doing
            raise Interrupted(number)


@contextlib.contextmanager
def listening() -> Iterator[Signals]:
    """Inside, the signals of ``NAMES`` raise :class:`Interrupted`, except where they are waited with.

    Signals that the process was started to ignore are left alone. Outside the main thread, where Python allows no
    handlers, nothing is changed.
    """
    signals = Signals()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """The signal that made the process leave; one that Python itself turned into an exception was a Ctrl-C."""
    return stop.signal if isinstance(stop, Interrupted) else signal.SIGINT


def listen(command: str) -> None:
    """From now on, until other handlers are set, a signal ends the process with a line and its code.

    Args:
        command: What the line begins with.
    """

    def leave(number: int, frame: Any) -> None:
        if os.environ.get("RANK", "0") == "0":  # of the processes of a job one speaks
            sys.stderr.write(f"{command}: stopped by {signal.Signals(number).name} before it began.\n")
            sys.stderr.flush()
        os._exit(128 + number)  # an exception within an import could be caught there, or break a library

    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)
