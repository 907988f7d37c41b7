"""Open a user's own data by path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyro_vae.data.files.arrays import open_npy, open_npz
from pyro_vae.data.files.folders import open_folder
from pyro_vae.data.files.tables import open_table
from pyro_vae.data.source import Parts, Request

#: Functions that open a file, by its suffix.
FILES: dict[str, Callable[[Path, Request], Parts]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".csv": open_table,
    ".parquet": open_table,
}

KINDS = "a .npy, .npz, .csv or .parquet file, or a folder of images"


def is_path(name: str) -> bool:
    """Return True if ``name`` is a path, not a data set's name.

    A path has a path separator or a known suffix, or exists on the disk.
    """
    if not name.strip():
        return False
    return "/" in name or "\\" in name or Path(name).suffix in FILES or Path(name).expanduser().exists()


def open_path(path: Path, request: Request) -> Parts:
    """Open a file or folder of data.

    Raises:
        ValueError: If the path is missing or cannot be read, or its data cannot be used.
    """
    try:
        if path.is_dir():
            return open_folder(path, request)
        if not path.exists():
            raise ValueError(f"data set {path}: expected {KINDS}, found no such path; check its spelling.")
        if path.suffix.lower() not in FILES:
            raise ValueError(f"data set {path}: expected {KINDS}, got another kind of file; convert the file.")
        return FILES[path.suffix.lower()](path, request)
    except (OSError, RuntimeError) as error:  # RuntimeError: a symbolic link that points to itself
        raise ValueError(f"data set {path}: expected readable data, got {error}; check the permissions.") from None
    except MemoryError:
        raise ValueError(
            f"data set {path}: the data do not fit into memory; save them as a .npy file, which is read batch by batch."
        ) from None
