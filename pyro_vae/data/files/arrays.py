"""Readers of NumPy's ``.npy`` and ``.npz`` files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile

from pyro_vae.data.files.array_checks import Checked, check
from pyro_vae.data.labels import encode_labels
from pyro_vae.data.source import Parts, Request
from pyro_vae.data.stored import Array, ArrayFile, DType, MemoryReader, Reader, Scaled
from pyro_vae.errors import first_line
from pyro_vae.lookup import unknown

T = TypeVar("T")

#: Recognized names of arrays: the data of each split, and the labels of each split. The key "" holds the names for labels of
#: a file without splits. All names are in lower case.
SPLITS = {
    "train": ("train", "x_train", "train_x", "train_images", "images_train", "train_data"),
    "validation": ("validation", "val", "valid", "x_val", "val_x", "x_valid", "x_validation", "val_images"),
    "test": ("test", "x_test", "test_x", "test_images", "images_test", "test_data"),
}
LABELS = {
    "train": ("y_train", "train_y", "train_labels", "labels_train"),
    "validation": ("y_val", "val_y", "y_valid", "y_validation", "val_labels"),
    "test": ("y_test", "test_y", "test_labels", "labels_test"),
    "": ("labels", "label", "y", "targets", "target", "classes"),
}

#: Errors that NumPy and zipfile raise for a broken file.
BROKEN = (ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class InMemory:
    """An array in memory."""

    array: Array

    @property
    def dtype(self) -> DType:
        """Type of the values."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, ``(N, ...)``."""
        return self.array.shape

    def rows(self, start: int, stop: int) -> Array:
        """Read rows ``start`` to ``stop - 1`` without conversion."""
        return self.array[start:stop]

    def reader(self, scaled: Scaled) -> Reader:
        """Return a reader that converts the values by ``scaled``."""
        return MemoryReader(self.array, scaled)


@dataclass(frozen=True)
class InFile:
    """An array in a ``.npy`` file."""

    file: ArrayFile

    @property
    def dtype(self) -> DType:
        """Type of the values."""
        return self.file.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, ``(N, ...)``."""
        return self.file.stored

    def rows(self, start: int, stop: int) -> Array:
        """Read rows ``start`` to ``stop - 1`` without conversion."""
        return self.file.values(slice(start, stop))

    def reader(self, scaled: Scaled) -> Reader:
        """Return a reader that converts the values by ``scaled``."""
        f = self.file
        return ArrayFile(f.path, f.offset, f.dtype, f.stored, f.fortran, scaled)


def open_npy(path: Path, request: Request) -> Parts:
    """Open the array in a ``.npy`` file without loading the array.

    Returns:
        Splits with all data in the training split.

    Raises:
        ValueError: If the file is not a ``.npy`` file, or its array cannot be used.
    """
    refuse_array(path, request)
    mapped = _attempt(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    if not isinstance(mapped, np.memmap):
        raise _unreadable(path, ValueError("another kind of file under this name"))
    order = mapped.flags.f_contiguous and not mapped.flags.c_contiguous
    file = ArrayFile(path.resolve(), mapped.offset, mapped.dtype, mapped.shape, order)
    del mapped
    checked = check(path.name, InFile(file), None, request)
    return Parts(checked.part, description=checked.description, unit=checked.unit)


def refuse_array(path: Path, request: Request) -> None:
    """Raise an error if ``--array`` is given for a one-array file."""
    if request.array is not None:
        raise ValueError(
            f"array: {path} has no named arrays (only .npz files have), got {request.array!r}; remove --array."
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    text, reason = str(error), first_line(error).rstrip(".")
    with path.open("rb") as file:
        start = file.read(6)
    numpy_or_zip = start[1:] == b"NUMPY" or start[:2] == b"PK"
    cut_off = not text or isinstance(error, EOFError) or "mmap length" in text or "reading array" in text
    if "allow_pickle" in text or "Object arrays" in text:
        reason = "Python objects" if numpy_or_zip else "no array (text, or another format)"
    elif cut_off or start[:2] == b"PK":
        reason = "an empty file" if path.stat().st_size == 0 else "a file that ends too early"
    return ValueError(
        f"data set {path}: expected a NumPy {path.suffix} file of numbers, got {reason}; save the array again "
        "by numpy.save or numpy.savez."
    )


def open_npz(path: Path, request: Request) -> Parts:
    """Open the arrays in an ``.npz`` file.

    If ``request.array`` is given, only this array is opened. Otherwise the arrays with the names of the splits are opened:
    ``train``, ``test`` and, if it exists, ``validation``. A file without arrays for train and test must have only one array.

    Returns:
        The splits; a single array is returned as the training split.

    Raises:
        ValueError: If the file is not an ``.npz`` file, the choice of the array is ambiguous, or an array cannot be used.
    """
    with path.open("rb") as stream:  # np.load would leave a broken file open
        archive = _attempt(path, lambda: np.load(stream, allow_pickle=False))
        if not isinstance(archive, NpzFile):
            raise _unreadable(path, ValueError("another kind of file under this name"))
        names = {name.lower(): name for name in archive.files}
        chosen = _choose(path, archive, names, request)
        several = len(chosen) > 1
        raw = {split: _labels(path, archive, names, split if several else "") for split in chosen}
        known = {split: values for split, values in raw.items() if values is not None}
        encoded, key = encode_labels(list(known.values()), f"{path.name}, labels") if known else ([], "")
        labels = dict(zip(known, encoded, strict=True))
        checked = {
            split: check(
                f"{path.name}, array {name}",
                _load(path, archive, name),
                labels.get(split),
                request,
                whole=not several,
                key=key if split in labels else "without labels",
            )
            for split, name in chosen.items()
        }
    _check_alike(path, checked)
    description = "\n".join(c.description for c in checked.values())
    splits = {split: c.part for split, c in checked.items()}
    return Parts(**splits, description=description, unit=all(c.unit for c in checked.values()))


def _attempt(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except BROKEN as error:
        raise _unreadable(path, error) from None


def _load(path: Path, archive: NpzFile, name: str) -> InMemory:
    return InMemory(_attempt(path, lambda: archive[name]))


def _choose(path: Path, archive: NpzFile, names: dict[str, str], request: Request) -> dict[str, str]:
    """Choose the array of each split; a single array becomes ``train``.

    Returns:
        The name of the chosen array, by split.
    """
    if not names:
        raise ValueError(f"data set {path}: expected at least one array, got an empty .npz file; save the file again.")
    if request.array is not None:
        if request.array not in archive.files:
            raise unknown(f"array of {path.name}", request.array, archive.files)
        return {"train": request.array}
    arrays = {split: names[n] for split, known in SPLITS.items() for n in known if n in names}
    if "train" in arrays and "test" in arrays:
        return arrays
    known_labels = {n for group in LABELS.values() for n in group}
    others = [name for name in archive.files if name.lower() not in known_labels]
    if not others:
        raise ValueError(
            f"data set {path}: expected an array of data, got only labels ({', '.join(archive.files)}); add the data."
        )
    if len(others) != 1:
        raise ValueError(
            f"array: data set {path} holds {len(others)} arrays ({', '.join(sorted(others))}); choose one with --array NAME."
        )
    return {"train": others[0]}


def _labels(path: Path, archive: NpzFile, names: dict[str, str], split: str) -> Array | None:
    for known in LABELS[split]:
        if known in names:
            return _load(path, archive, names[known]).array
    return None


def _check_alike(path: Path, checked: dict[str, Checked]) -> None:
    """Check that all splits have the same data shape and divisor."""
    shapes = {split: tuple(c.part.x.shape[1:]) for split, c in checked.items()}
    divisors = {split: getattr(c.part.x.reader, "scaled").divisor for split, c in checked.items()}  # noqa: B009
    for what, by_split in (("the same data shape", shapes), ("pixels with the same maximum", divisors)):
        if len(set(by_split.values())) > 1:
            listed = ", ".join(f"{split} {value}" for split, value in by_split.items())
            raise ValueError(f"data set {path}: expected {what} in all arrays, got {listed}; save all splits alike.")
