"""Labels of any kind as whole numbers, the same ones in every split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: How many labels are named in words.
NAMED_LABELS = 12


def encode_labels(arrays: Sequence[NDArray[Any]], name: str = "labels") -> tuple[list[Tensor], str]:
    """Number the labels of all splits together, from 0.

    Whole numbers from 0 to 999 stay as they are; other numbers are numbered in their order, texts in theirs, in which
    ``class-2`` stands before ``class-10``.

    Args:
        arrays: Labels of each split, shape ``(N,)`` or ``(N, 1)``.
        name: What they are called in messages.

    Returns:
        Shape ``(N,)``, int64, for each split; and in words, how many there are and which is which.

    Raises:
        ValueError: If they have another shape, or some are missing.
    """
    flat = [_flat(np.asarray(array), name) for array in arrays]
    whole = np.concatenate(flat)
    if whole.dtype.kind in "iub" and whole.size and whole.min() >= 0 and whole.max() < 1000:
        return [torch.from_numpy(part.astype(np.int64)) for part in flat], _count(len(np.unique(whole)))
    values = np.unique(whole) if whole.dtype.kind in "iuf" else np.array(sorted({str(v) for v in whole}, key=_natural))
    number = {value: k for k, value in enumerate(values.tolist())}
    as_key = (lambda v: v) if whole.dtype.kind in "iuf" else str
    found = [torch.tensor([number[as_key(v)] for v in part.tolist()], dtype=torch.int64) for part in flat]
    shown = ", ".join(f"{k} = {value}" for value, k in list(number.items())[:NAMED_LABELS])
    return found, f"{_count(len(values))}: {shown}" + (", ..." if len(values) > NAMED_LABELS else "")


def _count(number: int) -> str:
    return f"{number} label{'s' * (number != 1)}"


def _flat(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        hint = "; of one-hot rows save labels.argmax(1)" if values.ndim == 2 else ""
        raise ValueError(f"{name}: expected one for each datum, shape (N,), got shape {values.shape}{hint}.")
    missing = np.array([v is None or v != v for v in values.tolist()], dtype=bool)
    if missing.any():
        raise ValueError(
            f"{name}: expected one for each datum, got none in row {int(missing.argmax())}; fill or drop them."
        )
    return values


def _natural(text: str) -> list[tuple[int, int, str]]:
    """The order in which a person sorts names with numbers in them."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
