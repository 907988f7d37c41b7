"""Files written whole; folders locked, made fresh and tried out."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


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


LOCK = ".lock"


CLOCK = "%Y%m%d-%H%M%S"


#: Longest part of a folder's name that comes from what the run is called.
NAME_LENGTH = 80


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from claiming a folder; it is free again when the process ends, in whatever way.

    Where the file system has no locks, nothing is kept.

    Raises:
        ValueError: If another process has claimed it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    with ExitStack() as stack:
        try:
            lock.acquire()
            stack.callback(lock.release)
            stack.callback(_remove, folder / LOCK)  # while it is held: who opens the file later finds it gone
        except Timeout:
            raise ValueError(
                f"run directory {folder}: expected one that no other process is using, got one in use; wait until that "
                "process has ended, or take another --run-dir."
            ) from None
        except (OSError, NotImplementedError):
            pass  # a folder that cannot be written is found out by try_out
        yield


@contextmanager
def made(folder: Path, new: bool = False) -> Iterator[Path]:
    """Make a folder and its parents; those of them that stay empty are removed again.

    Args:
        folder: The folder.
        new: Whether it must not be there before.

    Raises:
        FileExistsError: If it must not be there, and is.
        ValueError: If it cannot be made.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=not new)
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            raise
        raise ValueError(f"run directory {folder}: expected a folder that can be written, got {error}.") from None
    try:
        yield folder
    finally:
        for path in absent:
            with suppress(OSError):  # it holds something
                path.rmdir()


@contextmanager
def fresh(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder ``NAME-DATE-TIME`` that no one else has: of ASCII letters, digits and hyphens, see :func:`made`."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[:NAME_LENGTH]
    stem = re.sub("-+", "-", f"{words}-{time.strftime(CLOCK)}").strip("-")
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        with ExitStack() as stack:
            try:
                stack.enter_context(made(folder, new=True))  # two runs of one second do not share a folder
            except FileExistsError:
                continue
            yield folder
            return
    raise ValueError(f"run directory {parent / stem}: expected a free name, got 999 taken; pass --run-dir.")


def try_out(folder: Path, needed: int) -> None:
    """Refuse a folder that a run cannot write its files to.

    Args:
        folder: The folder.
        needed: How many bytes the run will write.

    Raises:
        ValueError: If it cannot be written, or there is less room.
    """
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        probe.write_bytes(bytes(4096))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"run directory {folder}: expected a folder that can be written, got {error}.") from None
    finally:
        _remove(probe)
    if free < needed:
        raise ValueError(
            f"run directory {folder}: expected {needed / 1e6:,.0f} MB of free disk for checkpoints and pictures, got "
            f"{free / 1e6:,.0f} MB; free some, or take another --run-dir."
        )


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
