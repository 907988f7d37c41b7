"""A data set in files: looked for in folders and, where it is in none of them, fetched into the first."""

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

#: Seconds after which a silent network is given up.
TIMEOUT = 30.0


@dataclass(frozen=True)
class FileSet:
    """A named set in files, in torchvision's layout; called as a source, it gives the splits.

    Attributes:
        name: Its name.
        files: What ``read`` needs, files or folders, below a data folder.
        read: Folder and request to the splits; whatever it raises means that the files are damaged.
        fetch: Fetches the set into an empty folder.
        archives: What ``fetch`` takes instead of the network where it is there, once its checksum is right.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path, Request], Parts]
    fetch: Callable[[Path], None]
    archives: tuple[str, ...] = ()

    def __call__(self, request: Request) -> Parts:
        return self.find(request)[1]

    def find(self, request: Request) -> tuple[Path, Parts]:
        """The folder in which the files are, and the splits.

        Raises:
            ValueError: If the files are in no folder and cannot be fetched, or are damaged.
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
        except Exception as error:  # torchvision, gdown and archives of all kinds: each fails in its own way
            raise self._missing(request, f" and could not fetch them ({_reason(error)})") from None

    def place(self, folder: Path) -> Path:
        """Where below a data folder the files are."""
        return (folder / self.files[0]).parent

    def _look(self, request: Request) -> tuple[Path, Parts] | None:
        """The first folder with files that can be read, None if there are none; damaged ones are refused."""
        damaged = None
        for folder in request.folders:
            if not all(os.path.exists(folder / file) for file in self.files):
                continue
            try:
                return folder, self.read(folder, request)
            except ImportError:
                raise
            except Exception as error:  # idx, pickle, mat, zip, png: each fails in its own way
                damaged = damaged or _Damaged(
                    f"{self.name}: expected its files in {self.place(folder)}, got some that cannot be read "
                    f"({_reason(error)}); remove them and fetch them anew by {self._command(folder)}, name another folder by "
                    "--data-dir, or take --dataset digits, which needs no files."
                )
        if damaged is not None:
            raise damaged
        return None

    def _missing(self, request: Request, why: str) -> ValueError:
        places = " or ".join(str(self.place(folder)) for folder in request.folders)
        allow = "" if request.download else "allow --download, "
        return ValueError(
            f"{self.name}: expected its files in {places}, did not find them{why}; give the folder that holds "
            f"{self.files[0].split('/')[0]} by --data-dir, {allow}fetch them by {self._command(request.folders[0])} where "
            "there is a network, or take --dataset digits, which needs no files."
        )

    def _command(self, folder: Path) -> str:
        return f"python -m pyro_vae.data {self.name} --data-dir {shlex.quote(str(folder))}"

    def _fetched(self, request: Request) -> tuple[Path, Parts]:
        folder = request.folders[0]
        with new_folder(folder), lock_file(folder / f".{self.name}.lock") as alone:
            found = self._look(dataclasses.replace(request, folders=(folder,)))  # another process may have fetched it
            if found is not None:
                return found
            if alone:
                for left in folder.glob(f".{self.name}-*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=folder, ignore_cleanup_errors=True) as stage:
                self._fetch(Path(stage), request)
                for file in self.files:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(stage) / file, folder / file)
            return folder, self.read(folder, request)

    def _fetch(self, stage: Path, request: Request) -> None:
        """Fetch the set into a folder beside its place, and read it there: it is put in its place whole or not at all."""
        for file in self.files:
            if os.path.isdir(request.folders[0] / file):
                raise FileExistsError(f"{request.folders[0] / file} is there without what belongs to it: move it away")
        for archive in self.archives:
            there = [folder / archive for folder in request.folders if os.path.isfile(folder / archive)]
            if there:
                (stage / archive).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there[0], stage / archive)
        with _impatient():
            self.fetch(stage)
        self.read(stage, request)


class _Damaged(ValueError):
    """The files are there, but cannot be read."""


def _reason(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()).split(" You can use download=True")[0]
    return (text[:197] + "..." if len(text) > 200 else text).rstrip(".") or type(error).__name__


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up a network that is silent for long, unless the caller has set a limit: torchvision has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
