"""Labels of any kind as whole numbers, the same ones in every split; vectors in their place; and which a model may see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: How many labels are named in words.
NAMED_LABELS = 12

#: The label of data whose label is not known.
UNKNOWN = -1

#: What labels are stored as; others index in other ways, or know no -1.
WHOLE_NUMBERS = (torch.int64, torch.int32)


def encode_labels(arrays: Sequence[NDArray[Any]], name: str = "labels") -> tuple[list[Tensor], str]:
    """Number the labels of all splits together, from 0.

    Whole numbers from 0 to 999 stay as they are, be they stored as integers or not, and so does -1, which stands for a label
    that is not known, as a text too; other whole numbers are numbered in their order, texts in theirs, in which ``class-2``
    stands before ``class-10``. Vectors stay what they are: floats of shape ``(N, C)``, not one-hot, and where C is 1 not all
    whole, as floats of shape ``(N,)`` are that are not.

    Args:
        arrays: Labels of each split, shape ``(N,)`` or ``(N, 1)``, or vectors, those of one number of either shape.
        name: What they are called in messages.

    Returns:
        Shape ``(N,)``, int64, or, of vectors, ``(N, C)``, float32, for each split; and in words, how many there are and which
        is which.

    Raises:
        ValueError: If they have another shape, some are missing or not finite, or whole numbers are below -1.
    """
    if any(_are_vectors(np.asarray(array)) for array in arrays):
        return _vectors([np.asarray(array) for array in arrays], name)
    flat = _whole_numbers([_flat(np.asarray(array), name) for array in arrays])
    whole = np.concatenate(flat)
    if whole.dtype.kind in "iub":
        _check_sign(flat, name)
        known = whole[whole != UNKNOWN] if whole.dtype.kind != "b" else whole
        if known.size and known.max() < 1000:
            return [torch.from_numpy(part.astype(np.int64)) for part in flat], _count(len(np.unique(known)))
    of_numbers = whole.dtype.kind in "iuf"
    named = whole.tolist() if of_numbers else [str(v) for v in whole]
    values = sorted({v for v in named if not _stands_for_unknown(v)}, key=None if of_numbers else _natural)
    number = {value: k for k, value in enumerate(values)}
    as_key = (lambda v: v) if of_numbers else str
    found = [torch.tensor([number.get(as_key(v), UNKNOWN) for v in part.tolist()], dtype=torch.int64) for part in flat]
    shown = ", ".join(
        [f"{k} = {v}" for k, v in enumerate(values[:NAMED_LABELS])] + ["..."] * (len(values) > NAMED_LABELS)
    )
    return found, _count(len(values)) + (f": {shown}" if shown else "")


def num_classes(columns: Iterable[Tensor | None]) -> int | None:
    """One more than the largest of all labels; of vectors, how many numbers they have; None where there are neither."""
    columns = list(columns)
    if sizes := [y.shape[1] for y in columns if are_vectors(y) and y is not None]:
        return max(sizes)
    largest = [int(y.max()) for y in columns if y is not None and y.dim() == 1 and y.numel()]
    return 1 + max(largest) if largest and max(largest) >= 0 else None


def are_vectors(y: Tensor | None) -> bool:
    """Whether these are vectors in the place of labels, shape ``(N, C)``."""
    return y is not None and y.dim() == 2 and y.is_floating_point()


def keep_labels(y: Tensor | None, count: int, seed: int) -> Tensor:
    """Hide all but some labels, of which each class has as many, to within one.

    Args:
        y: Labels, shape ``(N,)``, int64, -1 where unknown.
        count: How many to keep.
        seed: Seed of the choice.

    Returns:
        Shape ``(N,)``, int64, -1 where hidden.

    Raises:
        ValueError: If there are no labels, fewer than ``count`` or too few of a class, or ``count`` is below the number of
            classes.
    """
    if are_vectors(y):
        raise ValueError(f"labels: expected labels of which to keep {count:,}, got vectors in their place; drop it.")
    if y is None or not bool((y >= 0).any()):
        raise ValueError(f"labels: expected data with labels of which to keep {count:,}, got data without; drop it.")
    generator = torch.Generator().manual_seed(seed)
    classes = y[y >= 0].unique()
    if not len(classes) <= count <= int((y >= 0).sum()):
        raise ValueError(
            f"labels: expected between {len(classes)}, one of each class, and {int((y >= 0).sum()):,}, all there are, got "
            f"{count:,}; leave it out to keep all."
        )
    share, more = divmod(count, len(classes))
    extra = set(classes[torch.randperm(len(classes), generator=generator)[:more]].tolist())
    kept = torch.full_like(y, UNKNOWN)
    for label in classes.tolist():
        rows = (y == label).nonzero()[:, 0]
        wanted = share + (label in extra)
        if len(rows) < wanted:
            raise ValueError(
                f"labels: expected at most {len(rows):,} of class {label}, as many as there are, got {count:,} for "
                f"{len(classes)} classes, {wanted:,} of this one; keep fewer."
            )
        kept[rows[torch.randperm(len(rows), generator=generator)[:wanted]]] = label
    return kept


def check_labels(y: Tensor, classes: int | None, complete: bool) -> None:
    """Refuse labels that a model has no class for, or no use of.

    Args:
        y: Labels, int64, shape ``(N,)``; or, where the model needs one of each datum, vectors, floats of shape ``(N, C)``.
        classes: C, how many classes the model has; None: any, and what else it may take as y is let through.
        complete: Whether it needs a label of each datum.

    Raises:
        ValueError: If they are of another kind, a label is below -1 or no class, or one is missing that is needed.
    """
    if y.is_floating_point() and complete and y.dim() == 2 and y.shape[1] == classes:
        return
    if y.dim() != 1 or y.dtype not in WHOLE_NUMBERS:
        if classes is None:
            return
        vectors = f", or vectors, floats of shape (N, {classes})" if complete else ""
        got = f"{'vectors, ' * are_vectors(y)}{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
        mend = "convert them (y.long(), y[:, 0], y.argmax(1))"
        if are_vectors(y) and not complete:
            mend += ", or take a model of vectors, conditional"
        raise ValueError(f"labels: expected whole numbers, int64 of shape (N,){vectors}, got {got}; {mend}.")
    bad = (y < UNKNOWN) if classes is None else (y < UNKNOWN) | (y >= classes)
    if bool(bad.any()):
        row, most = int(bad.long().argmax()), "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"labels: expected whole numbers from 0{most}, and -1 where unknown, got {int(y[row])} in row {row}; number the "
            "classes from 0."
        )
    if complete and bool((y == UNKNOWN).any()):
        row = int((y == UNKNOWN).long().argmax())
        raise ValueError(
            f"labels: expected one for each datum, which this model needs, got none (-1) in row {row}; drop these data, or "
            "take a model that classifies, such as m2."
        )


def _count(number: int) -> str:
    return f"{number} label{'s' * (number != 1)}"


def _are_vectors(values: NDArray[Any]) -> bool:
    if values.ndim not in (1, 2) or values.dtype.kind != "f":
        return False
    values = values.reshape(len(values), -1)
    if bool(np.all((values == 0) | (values == 1)) and np.all(values.sum(1) == 1)):
        return False  # one-hot rows, which are labels
    return values.shape[1] > 1 or not bool(np.all((values == np.floor(values)) | np.isnan(values)))


def _vectors(parts: list[NDArray[Any]], name: str) -> tuple[list[Tensor], str]:
    """Vectors of every split as they are, and in words how many numbers they have."""
    size = max((part.shape[-1] for part in parts if part.ndim == 2), default=1)
    parts = [part[:, None] if part.ndim == 1 and size == 1 else part for part in parts]
    for part in parts:
        if part.ndim != 2 or part.shape[1] != size or part.dtype.kind not in "iubf":
            raise ValueError(
                f"{name}: expected vectors of {size} numbers in every split, got {part.dtype} of shape {part.shape}; save all "
                "alike."
            )
    found = [torch.from_numpy(part.astype(np.float32)) for part in parts]
    for vectors in found:
        if not bool(vectors.isfinite().all()):
            row = int((~vectors.isfinite()).any(1).long().argmax())
            raise ValueError(
                f"{name}: expected finite numbers, got others in row {row}; drop these data, or fill them in."
            )
    return found, f"vectors of {size} number{'s' * (size != 1)} in the place of labels"


def _flat(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        hint = "; of one-hot rows save labels.argmax(1), of vectors floats" if values.ndim == 2 else ""
        raise ValueError(f"{name}: expected one for each datum, shape (N,), got shape {values.shape}{hint}.")
    missing = np.array([_is_missing(value) for value in values.tolist()], dtype=bool)
    if missing.any():
        raise ValueError(
            f"{name}: expected one for each datum, got none in row {int(missing.argmax())}; write -1 where it is unknown, "
            "or drop these data."
        )
    return values


def _is_missing(value: Any) -> bool:
    """Whether nothing is there: no value, NaN, or a text of blanks."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _whole_numbers(parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The same, as integers where all are whole numbers of floating point."""
    if not any(part.dtype.kind == "f" for part in parts) or any(part.dtype.kind not in "iubf" for part in parts):
        return parts
    whole = all(bool(np.all((part == np.floor(part)) & (np.abs(part) < 2**53))) for part in parts)
    return [part.astype(np.int64) for part in parts] if whole else parts


def _check_sign(parts: list[NDArray[Any]], name: str) -> None:
    for part in parts:
        if part.dtype.kind == "i" and (part < UNKNOWN).any():
            row = int((part < UNKNOWN).argmax())
            raise ValueError(
                f"{name}: expected whole numbers from 0, and -1 where unknown, got {part[row]} in row {row}; number the "
                "classes from 0."
            )


def _stands_for_unknown(value: Any) -> bool:
    return value.strip() in ("-1", "-1.0") if isinstance(value, str) else value == UNKNOWN


def _natural(text: str) -> list[tuple[int, int, str]]:
    """The order in which a person sorts names with numbers in them."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
