"""Files that are there whole or not at all, and what names a run's folder to a shell."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path


def resuming(folder: Path) -> str:
    """The flag by which the run in a folder goes on, as a shell takes it."""
    return f"--resume {shlex.quote(str(folder))}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old one or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be opened and synced (not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):  # the file is in its place; some file systems cannot do more
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """The temporary files that a killed :func:`write_atomically` of these names left in a folder."""
    return [path for name in names for path in folder.glob(f".{name}.*.tmp")]
