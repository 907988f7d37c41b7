"""What a user's array holds: shape, type and range, checked before anything is trained on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pyro_vae.data.source import Part, Request
from pyro_vae.data.stored import CHUNK_BYTES, Reader, Scaled, Stored

#: Above this many values a bar is shown while all of them are looked at.
LONG = 2**28


class Values(Protocol):
    """An array in memory or in a file, and how it becomes a reader."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, rows first."""
        ...

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows from ``start`` to ``stop`` as they are."""
        ...

    def reader(self, scaled: Scaled) -> Reader:
        """A reader of these values."""
        ...


@dataclass(frozen=True)
class Range:
    """What was found in an array.

    Attributes:
        lowest: Smallest value.
        highest: Largest value.
        whole: Whether all values are whole numbers.
    """

    lowest: float
    highest: float
    whole: bool


@dataclass(frozen=True)
class Checked:
    """An array as data.

    Attributes:
        part: The data.
        words: What they are and what is done to them.
        unit: Whether the values the model gets are in [0, 1].
    """

    part: Part
    words: str
    unit: bool


def check(
    name: str,
    values: Values,
    labels: Tensor | None,
    request: Request,
    whole: bool = True,
    key: str = "without labels",
) -> Checked:
    """Make data of an array, or say why it is none.

    Args:
        name: What it is called in messages.
        values: The array.
        labels: Its labels, or None.
        request: What is asked.
        whole: Whether the splits are still to be taken from it.
        key: What the labels are, in words.

    Raises:
        ValueError: If its type, shape, length, values or labels are not as they should be.
    """
    _check_dtype(name, values.dtype)
    _check_shape(name, values.shape, 3 if whole else 1)
    if labels is not None and len(labels) != values.shape[0]:
        raise ValueError(f"{name}: expected a label for each of {values.shape[0]:,} data, got {len(labels):,} labels.")
    found = _look(name, values, request.progress)
    table = len(values.shape) == 2
    divisor, note = _scale(name, found, values.dtype, table)
    axes, data_shape = _layout(name, values.shape, request.image_size)
    scaled = Scaled(divisor, axes, data_shape)
    size = request.image_size if not table else None
    part = Part(Stored(values.reader(scaled), image_size=size), labels)
    words = (
        f"{name}: {' x '.join(f'{n:,}' for n in values.shape)} {values.dtype}, {found.lowest:g} to {found.highest:g}, "
        f"{note}; {key}"
    )
    return Checked(part, words, 0 <= found.lowest and found.highest <= divisor)


def _check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        kinds = {"c": "complex numbers", "O": "Python objects", "U": "text", "S": "text"}
        raise ValueError(
            f"{name}: expected booleans, whole numbers or floats, got {kinds.get(dtype.kind, 'values')} ({dtype}); convert "
            "them, for instance by astype('float32')."
        )


def _check_shape(name: str, shape: tuple[int, ...], least: int) -> None:
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{name}: expected one datum a row: N x D numbers, N x H x W grey images, or N x H x W x 3 or N x 3 x H x W "
            f"coloured ones, got an array with {len(shape)} dimension{'s' * (len(shape) != 1)} {shape}; reshape it."
        )
    if shape[0] < least or 0 in shape:
        aim = " (to train, validate and test with)" if least > 1 else ""
        raise ValueError(
            f"{name}: expected at least {least} data{aim}, none of them empty, got shape {shape}; add some."
        )


def _look(name: str, values: Values, progress: bool) -> Range:
    """Pass over all values once, in chunks."""
    lowest, highest, whole = math.inf, -math.inf, True
    for start, chunk in _chunks(values, progress):
        if values.dtype.kind == "f" and not np.isfinite(chunk).all():
            row = start + int(np.argwhere(~np.isfinite(chunk))[0, 0])
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in row {row:,} (counted from 0); leave such rows out "
                "or replace these values."
            )
        if float(np.abs(chunk).max() if chunk.dtype.kind == "f" else 0) > float(np.finfo(np.float32).max):
            raise ValueError(
                f"{name}: expected numbers that float32 can hold, got up to {chunk.max():g}; rescale them."
            )
        lowest, highest = min(lowest, float(chunk.min())), max(highest, float(chunk.max()))
        if whole and values.dtype.kind == "f":
            whole = bool((chunk == np.floor(chunk)).all())
    return Range(lowest, highest, whole)


def _chunks(values: Values, progress: bool) -> Iterator[tuple[int, NDArray[Any]]]:
    row = max(1, math.prod(values.shape[1:]) * values.dtype.itemsize)
    size = max(1, CHUNK_BYTES // row)
    hidden: bool | None = None if progress and math.prod(values.shape) > LONG else True
    for start in tqdm(range(0, values.shape[0], size), disable=hidden, leave=False, desc="checking the data"):
        yield start, values.rows(start, min(start + size, values.shape[0]))


def _scale(name: str, found: Range, dtype: np.dtype[Any], table: bool) -> tuple[float, str]:
    """What to divide by, and how to say it."""
    low, high = found.lowest, found.highest
    if 0 <= low and high <= 1:
        return 1.0, "as they are"
    if 0 <= low and high <= 255 and (found.whole or (high > 2 and not table)):
        return 255.0, "divided by 255"
    if table:
        return 1.0, "as they are"
    raise ValueError(
        f"{name}: expected pixels in [0, 1] or [0, 255], got {low:g} to {high:g} ({dtype}); rescale them, for instance by "
        "(x - x.min()) / (x.max() - x.min())."
    )


def _layout(
    name: str, shape: tuple[int, ...], image_size: tuple[int, int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The order of the axes, and the shape of a datum where it is not what that order gives."""
    if len(shape) == 4:
        if shape[1] in (1, 3):
            return None, None
        if shape[3] not in (1, 3):
            raise ValueError(
                f"{name}: expected images of 1 or 3 channels, N x H x W x C or N x C x H x W, got shape {shape}; drop other "
                "channels, such as transparency, by x[..., :3]."
            )
        return (0, 3, 1, 2), None
    if len(shape) == 3:
        return None, (1, *shape[1:])
    if image_size is None:
        return None, None
    channels, rest = divmod(shape[1], math.prod(image_size))
    if rest or channels not in (1, 3):
        height, width = image_size
        raise ValueError(
            f"image_size: expected the size of the images that rows of {shape[1]:,} numbers are, got {height} x {width}, "
            f"which has {height * width:,} pixels; leave it out, or give the right one."
        )
    return None, (channels, *image_size)
