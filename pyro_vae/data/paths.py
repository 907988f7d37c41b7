"""A user's own data by path."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.data.parts import Parts, Request


def is_path(name: str) -> bool:
    """Whether a data set is meant as a path: it has a separator or a suffix, or it is there."""
    return "/" in name or "\\" in name or Path(name).suffix != "" or Path(name).expanduser().exists()


def open_path(path: Path, request: Request) -> Parts:
    """The parts of a file or folder."""
    raise ValueError(f"{path}: expected a file or folder.")
