"""Atomic writes, lock files, and folders for the output of runs."""

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

#: Format of the date and time at the end of a folder's name.
CLOCK = "%Y%m%d-%H%M%S"

#: Largest number of characters of the run's name that become part of the folder's name.
NAME_LENGTH = 80


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, replacing an existing file.

    At every moment, ``path`` holds either the complete old content or the complete new content.

    Args:
        path: The file.
        content: The new content.

    Raises:
        OSError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; they then survive power failures.

    On Windows, which cannot open folders, this function does nothing.
    """
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # the file is already renamed; some file systems cannot sync folders
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """List temporary files left behind by a killed :func:`write_atomically`.

    Args:
        folder: The folder to search.
        names: Names of the files that :func:`write_atomically` was asked to write.
    """
    return [path for name in names for path in folder.glob(f".{name}.*.tmp")]


@contextmanager
def lock_file(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock inside the ``with`` block; other processes wait for it.

    The lock is released when the process ends, even if it is killed.

    Args:
        path: The lock file. It is removed at the end.
        timeout: Seconds to wait until another process releases the lock; a negative number for no limit.

    Yields:
        True if the lock is held; False if the file system has no locks.

    Raises:
        filelock.Timeout: If another process still holds the lock after ``timeout`` seconds.
        OSError: If the lock file cannot be written.
    """
    with ExitStack() as stack:
        lock, held = FileLock(path, timeout=timeout), False
        with suppress(NotImplementedError):
            lock.acquire()
            held = True
            stack.callback(lock.release)
            # The file is removed while the lock is held, since another user could not open this user's file. A process that
            # waits for the lock makes a new file.
            stack.callback(_remove, path)
        yield held


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder inside the ``with`` block.

    On a file system without locks, this does nothing.

    Raises:
        ValueError: If another process has locked the folder.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / LOCK, timeout=0))
        except Timeout:
            raise ValueError(
                f"run directory {folder}: another process is using this folder; wait until that process has ended, or choose "
                "another --run-dir."
            ) from None
        except OSError:
            pass  # check_writable refuses a folder that cannot be written
        yield


@contextmanager
def new_folder(folder: Path, exist_ok: bool = True) -> Iterator[Path]:
    """Make a folder and its missing parents.

    At the end of the ``with`` block, every folder that was made here and is still empty is removed.

    Args:
        folder: The folder.
        exist_ok: If True, the folder may exist already. An existing folder is never removed.

    Raises:
        OSError: If the folder cannot be made.
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
    """Make the folder of a run; see :func:`new_folder`.

    Raises:
        FileExistsError: If the folder exists and ``exist_ok`` is False.
        ValueError: If the folder cannot be made.
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
    """Make a new folder ``NAME-DATE-TIME``; see :func:`new_folder`.

    All characters of ``name`` except ASCII letters and digits become hyphens.

    Raises:
        ValueError: If the folder cannot be made.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[:NAME_LENGTH]
    stem = re.sub("-+", "-", f"{words}-{time.strftime(CLOCK)}").strip("-")
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        with ExitStack() as stack:
            try:
                stack.enter_context(run_folder(folder, exist_ok=False))
            except FileExistsError:  # another run has started in the same second
                continue
            yield folder
            return
    raise ValueError(f"run directory {parent / stem}: expected an unused name, but 999 are taken; pass --run-dir.")


def check_writable(folder: Path, needed: int) -> None:
    """Check that a run can write its files to a folder.

    Args:
        folder: The folder.
        needed: Bytes that the run will write.

    Raises:
        ValueError: If the folder cannot be written, or has less than ``needed`` bytes of free space.
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
            f"{free / 1e6:,.0f} MB; free some space, or choose another --run-dir."
        )


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"run directory {folder}: expected a folder that can be written, got {error}; choose another --run-dir."
    )


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
