"""The console, where a command prints lines and shows progress bars."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Console:
    """Standard output of a command.

    Attributes:
        quiet: True to print no lines and show no progress bars.
    """

    quiet: bool = False

    def line(self, text: str) -> None:
        """Print a line at once, unless quiet."""
        if not self.quiet:
            print(text, flush=True)
