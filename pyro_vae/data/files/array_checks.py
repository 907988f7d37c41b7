"""Checks of the type, shape and values of a user's array."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pyro_vae.data.source import Part, Request
from pyro_vae.data.stored import CHUNK_BYTES, Array, DType, Reader, Scaled, Stored

#: Above this number of values, a progress bar is shown while the values are checked.
LONG = 2**28


class Values(Protocol):
    """Protocol of an array in memory or in a file."""

    @property
    def dtype(self) -> DType:
        """Type of the values."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, ``(N, ...)``."""
        ...

    def rows(self, start: int, stop: int) -> Array:
        """Read rows ``start`` to ``stop - 1`` without conversion."""
        ...

    def reader(self, scaled: Scaled) -> Reader:
        """Return a reader that converts the values by ``scaled``."""
        ...


@dataclass(frozen=True)
class Range:
    """The range of the values of an array.

    Attributes:
        lowest: Smallest value.
        highest: Largest value.
        whole: True if all values are whole numbers.
    """

    lowest: float
    highest: float
    whole: bool


@dataclass(frozen=True)
class Checked:
    """An array that has passed all checks.

    Attributes:
        part: The data with their labels.
        description: Description of the data, printed on the terminal.
        unit: True if all values are in [0, 1] after conversion.
    """

    part: Part
    description: str
    unit: bool


def check(
    name: str,
    values: Values,
    labels: Tensor | None,
    request: Request,
    whole: bool = True,
    key: str = "without labels",
) -> Checked:
    """Check an array, and choose the conversion of its values.

    Args:
        name: Name of the array for error messages.
        values: The array.
        labels: Labels of the data, shape ``(N,)`` or ``(N, C)``, or None.
        request: The options for loading the data.
        whole: True if the array holds all data, before they are split.
        key: Text about the labels, for the description.

    Returns:
        The data, their description, and whether their values are in [0, 1].

    Raises:
        ValueError: If the array's type, shape, length or values cannot be used, or the number of labels is not N.
    """
    _check_dtype(name, values.dtype)
    _check_shape(name, values.shape, 3 if whole else 1)
    if labels is not None and len(labels) != values.shape[0]:
        raise ValueError(f"{name}: expected a label for each of {values.shape[0]:,} data, got {len(labels):,} labels.")
    limits = _range(name, values, request.progress)
    table = len(values.shape) == 2
    divisor, note = _divisor(name, limits, values.dtype, table)
    axes, data_shape = _axes(name, values.shape, request.image_size)
    scaled = Scaled(divisor, axes, data_shape)
    size = request.image_size if not table else None
    part = Part(Stored(values.reader(scaled), image_size=size), labels)
    description = (
        f"{name}: {' x '.join(f'{n:,}' for n in values.shape)} {values.dtype}, {limits.lowest:g} to {limits.highest:g}, "
        f"{note}; {key}"
    )
    return Checked(part, description, 0 <= limits.lowest and limits.highest <= divisor)


def _check_dtype(name: str, dtype: DType) -> None:
    if dtype.kind not in "biuf":
        kinds = {"c": "complex numbers", "O": "Python objects", "U": "text", "S": "text"}
        raise ValueError(
            f"{name}: expected booleans, whole numbers or floats, got {kinds.get(dtype.kind, 'values')} ({dtype}); convert "
            "the array, for example by astype('float32')."
        )


def _check_shape(name: str, shape: tuple[int, ...], least: int) -> None:
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{name}: expected shape (N, D), (N, H, W) for grey images, or (N, H, W, C) or (N, C, H, W), got "
            f"{len(shape)} dimension{'s' * (len(shape) != 1)} {shape}; reshape the array."
        )
    if shape[0] < least or 0 in shape:
        aim = " (for training, validation and test)" if least > 1 else ""
        raise ValueError(
            f"{name}: expected at least {least} data{aim}, none of them empty, got shape {shape}; add data."
        )


def _range(name: str, values: Values, progress: bool) -> Range:
    """Check that all values are finite; return their range."""
    lowest, highest, whole = math.inf, -math.inf, True
    for start, chunk in _chunks(values, progress):
        if values.dtype.kind == "f" and not np.isfinite(chunk).all():
            row = start + int(np.argwhere(~np.isfinite(chunk))[0, 0])
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in row {row:,} (counted from 0); remove such rows, or "
                "replace these values."
            )
        if float(np.abs(chunk).max() if chunk.dtype.kind == "f" else 0) > float(np.finfo(np.float32).max):
            raise ValueError(
                f"{name}: expected numbers in the range of float32, got up to {chunk.max():g}; rescale the array."
            )
        lowest, highest = min(lowest, float(chunk.min())), max(highest, float(chunk.max()))
        if whole and values.dtype.kind == "f":
            whole = bool((chunk == np.floor(chunk)).all())
    return Range(lowest, highest, whole)


def _chunks(values: Values, progress: bool) -> Iterator[tuple[int, Array]]:
    row = max(1, math.prod(values.shape[1:]) * values.dtype.itemsize)
    size = max(1, CHUNK_BYTES // row)
    hidden: bool | None = None if progress and math.prod(values.shape) > LONG else True
    for start in tqdm(range(0, values.shape[0], size), disable=hidden, leave=False, desc="checking the data"):
        yield start, values.rows(start, min(start + size, values.shape[0]))


def _divisor(name: str, limits: Range, dtype: DType, table: bool) -> tuple[float, str]:
    """Choose the divisor that scales the values; describe the scaling.

    Returns:
        The divisor, and a description of the scaling.
    """
    low, high = limits.lowest, limits.highest
    if 0 <= low and high <= 1:
        return 1.0, "as they are"
    if 0 <= low and high <= 255 and (limits.whole or (high > 2 and not table)):
        return 255.0, "divided by 255"
    if table:
        return 1.0, "as they are"
    raise ValueError(
        f"{name}: expected pixels in [0, 1] or [0, 255], got {low:g} to {high:g} ({dtype}); rescale the pixels, for example "
        "by (x - x.min()) / (x.max() - x.min())."
    )


def _axes(
    name: str, shape: tuple[int, ...], image_size: tuple[int, int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return the axis order and the shape of a datum after conversion.

    None stands for an order or a shape that the conversion keeps.
    """
    if len(shape) == 4:
        if shape[1] in (1, 3):
            return None, None
        if shape[3] not in (1, 3):
            raise ValueError(
                f"{name}: expected images with 1 or 3 channels, (N, H, W, C) or (N, C, H, W), got shape {shape}; remove "
                "other channels, such as transparency, by x[..., :3]."
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
            f"image_size: expected the size of images with {shape[1]:,} numbers, got {height} x {width} = "
            f"{height * width:,} pixels; correct --image-size, or remove it."
        )
    return None, (channels, *image_size)
