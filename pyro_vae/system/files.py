"""Files written whole, lock files, and folders for the output of runs."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

#: Name of the lock file in the folder of a run.
LOCK = ".lock"

#: Date and time in the name of a folder.
CLOCK = "%Y%m%d-%H%M%S"

#: Longest part of a folder's name that comes from the name of the run.
NAME_LENGTH = 80


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by a whole new one.

    At every moment either the old or the new one is there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to raise
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut.

    Windows cannot open and sync folders.
    """
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # the file is in its place; some file systems cannot do more
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """List the temporary files of a killed :func:`write_atomically`."""
    return [path for name in names for path in folder.glob(f".{name}.*.tmp")]


@contextmanager
def lock_file(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock file, which other processes wait for.

    It is free when the process ends, in whatever way.

    Args:
        path: The lock file, removed at the end.
        timeout: Seconds to wait for another process; negative for no limit.

    Yields:
        True; False where the file system has no locks.

    Raises:
        filelock.Timeout: If another process still holds it.
        OSError: If the file cannot be written.
    """
    with ExitStack() as stack:
        lock, held = FileLock(path, timeout=timeout), False
        with suppress(NotImplementedError):
            lock.acquire()
            held = True
            stack.callback(lock.release)
            # Removed while it is held, since another user could not open it. A process that waits for it makes a new one.
            stack.callback(_remove, path)
        yield held


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder of a run, where the file system has locks.

    Raises:
        ValueError: If another process has locked it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / LOCK, timeout=0))
        except Timeout:
            raise ValueError(
                f"run directory {folder}: expected one that no other process is using, got one in use; wait until that "
                "process has ended, or take another --run-dir."
            ) from None
        except OSError:
            pass  # check_writable refuses a folder that cannot be written
        yield


@contextmanager
def new_folder(folder: Path, exist_ok: bool = True) -> Iterator[Path]:
    """Make a folder and its parents; remove empty ones at the end.

    Args:
        folder: The folder.
        exist_ok: Whether the folder may exist already; then it stays.

    Raises:
        OSError: If it cannot be made.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=exist_ok)
    try:
        yield folder
    finally:
        for path in absent:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def run_folder(folder: Path, exist_ok: bool = True) -> Iterator[Path]:
    """Make the folder of a run, see :func:`new_folder`.

    Raises:
        FileExistsError: If it exists and may not.
        ValueError: If it cannot be made.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(new_folder(folder, exist_ok))
        except OSError as error:
            if not exist_ok and isinstance(error, FileExistsError):
                raise
            raise _unwritable(folder, error) from None
        yield folder


@contextmanager
def dated_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a new folder ``NAME-DATE-TIME``, see :func:`new_folder`.

    Its name has ASCII letters, digits and hyphens only.

    Raises:
        ValueError: If it cannot be made.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[:NAME_LENGTH]
    stem = re.sub("-+", "-", f"{words}-{time.strftime(CLOCK)}").strip("-")
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        with ExitStack() as stack:
            try:
                stack.enter_context(run_folder(folder, exist_ok=False))
            except FileExistsError:  # of another run in the same second
                continue
            yield folder
            return
    raise ValueError(f"run directory {parent / stem}: expected a free name, got 999 taken; pass --run-dir.")


def check_writable(folder: Path, needed: int) -> None:
    """Check that a run can write its files to a folder.

    Args:
        folder: The folder.
        needed: Bytes that the run will write.

    Raises:
        ValueError: If it cannot be written, or has less free space.
    """
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        probe.write_bytes(bytes(4096))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        _remove(probe)
    if free < needed:
        raise ValueError(
            f"run directory {folder}: expected {needed / 1e6:,.0f} MB of free disk for checkpoints and pictures, got "
            f"{free / 1e6:,.0f} MB; free some, or take another --run-dir."
        )


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"run directory {folder}: expected a folder that can be written, got {error}; take another --run-dir."
    )


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
