"""A user's own data by path."""

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
    """Return True if a name is meant as a path.

    It has a path separator or a known suffix, or exists as a path.
    """
    if not name.strip():
        return False
    return "/" in name or "\\" in name or Path(name).suffix in FILES or Path(name).expanduser().exists()


def open_path(path: Path, request: Request) -> Parts:
    """Open a file or folder.

    Raises:
        ValueError: If it is missing, cannot be read, or holds no data that can be used.
    """
    try:
        if path.is_dir():
            return open_folder(path, request)
        if not path.exists():
            raise ValueError(f"data set {path}: expected {KINDS}, got a path where nothing is; check its spelling.")
        if path.suffix.lower() not in FILES:
            raise ValueError(f"data set {path}: expected {KINDS}, got a file of another kind; save it as one of these.")
        return FILES[path.suffix.lower()](path, request)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise ValueError(
            f"data set {path}: expected data that can be read, got {error}; check its permissions."
        ) from None
    except MemoryError:
        raise ValueError(
            f"data set {path}: expected data that fit into memory, got larger ones; save them as .npy, which is read a batch "
            "at a time."
        ) from None
