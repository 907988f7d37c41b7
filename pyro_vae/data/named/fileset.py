"""Named data sets whose files are found in a folder or downloaded."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyro_vae.data.source import Parts, Request
from pyro_vae.system.files import lock_file, new_folder

#: Timeout of a download that receives nothing, in seconds.
TIMEOUT = 30.0


@dataclass(frozen=True)
class FileSet:
    """A named data set that is read from files.

    Calling the object returns the splits. Files and folders have torchvision's layout.

    Attributes:
        name: Name of the data set.
        files: Paths, relative to a data folder, of the files and folders that ``read`` needs.
        read: Function that reads the splits from a data folder. If ``read`` raises an error, the files are damaged.
        fetch: Function that downloads the data set into an empty folder.
        archives: Paths of downloaded archives. ``fetch`` uses an existing archive with the right checksum instead of
            downloading it again.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path, Request], Parts]
    fetch: Callable[[Path], None]
    archives: tuple[str, ...] = ()

    def __call__(self, request: Request) -> Parts:
        return self.find(request)[1]

    def find(self, request: Request) -> tuple[Path, Parts]:
        """Find the files of the data set, or download them.

        Returns:
            The data folder that holds the files, and the splits.

        Raises:
            ValueError: If the files are damaged, or are missing and cannot be downloaded.
        """
        found = self._look(request)
        if found is not None:
            return found
        if not request.download:
            raise self._missing(request, "")
        try:
            return self._fetched(request)
        except _Damaged:
            raise
        except Exception as error:  # torchvision, gdown and archives raise many kinds of errors
            raise self._missing(request, f" and could not fetch them ({_reason(error)})") from None

    def place(self, folder: Path) -> Path:
        """Return the subfolder of ``folder`` that holds this data set's files."""
        return (folder / self.files[0]).parent

    def _look(self, request: Request) -> tuple[Path, Parts] | None:
        """Find the first data folder that holds readable files of this set.

        Returns:
            The data folder and the splits; None if no data folder has the files.

        Raises:
            ValueError: If a data folder has the files, but no data folder has files that can be read.
        """
        damaged = None
        for folder in request.folders:
            if not all(os.path.exists(folder / file) for file in self.files):
                continue
            try:
                return folder, self.read(folder, request)
            except ImportError:
                raise
            except Exception as error:  # idx, pickle, mat, zip and png files raise many kinds of errors
                damaged = damaged or _Damaged(
                    f"{self.name}: the files in {self.place(folder)} cannot be read ({_reason(error)}); remove these files and "
                    f"run {self._command(folder)}, pass another --data-dir, or take --dataset digits, which needs no files."
                )
        if damaged is not None:
            raise damaged
        return None

    def _missing(self, request: Request, why: str) -> ValueError:
        places = " or ".join(str(self.place(folder)) for folder in request.folders)
        allow = "" if request.download else "allow --download, "
        return ValueError(
            f"{self.name}: found no files in {places}{why}; pass the folder with {self.files[0].split('/')[0]} by --data-dir, "
            f"{allow}run {self._command(request.folders[0])} with a network, or take --dataset digits, which needs no files."
        )

    def _command(self, folder: Path) -> str:
        return f"python -m pyro_vae.data {self.name} --data-dir {shlex.quote(str(folder))}"

    def _fetched(self, request: Request) -> tuple[Path, Parts]:
        folder = request.folders[0]
        with new_folder(folder), lock_file(folder / f".{self.name}.lock") as alone:
            found = self._look(
                dataclasses.replace(request, folders=(folder,))
            )  # another process may have downloaded the files
            if found is not None:
                return found
            if alone:
                for left in folder.glob(f".{self.name}-*"):  # left over by a killed process
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=folder, ignore_cleanup_errors=True) as stage:
                self._fetch(Path(stage), request)
                for file in self.files:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(stage) / file, folder / file)
            return folder, self.read(folder, request)

    def _fetch(self, stage: Path, request: Request) -> None:
        """Download the data set into the temporary folder ``stage`` and read it."""
        for file in self.files:
            if os.path.isdir(request.folders[0] / file):
                raise FileExistsError(f"{request.folders[0] / file} exists, but other files are missing: move it away")
        for archive in self.archives:
            found = [folder / archive for folder in request.folders if os.path.isfile(folder / archive)]
            if found:
                (stage / archive).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found[0], stage / archive)
        with _network_timeout():
            self.fetch(stage)
        self.read(stage, request)


class _Damaged(ValueError):
    """The error for files that exist but cannot be read."""


def _reason(error: Exception) -> str:
    """Return an error's message as one line of at most 200 characters."""
    text = " ".join(str(error).split()).split(" You can use download=True")[0]
    return (text[:197] + "..." if len(text) > 200 else text).rstrip(".") or type(error).__name__


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Set a network timeout for torchvision, which sets none.

    A timeout set by the caller is kept.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
