"""Console: the lines of text and progress bars of a command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Console:
    """Standard output of a command.

    Attributes:
        quiet: Print no lines and show no progress bars.
    """

    quiet: bool = False

    def line(self, text: str) -> None:
        """Print a line at once, unless quiet."""
        if not self.quiet:
            print(text, flush=True)
