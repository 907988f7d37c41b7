"""What a signal does while a command is still importing: it ends the process with a line instead of a traceback."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


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
