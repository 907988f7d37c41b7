"""Functions that encode labels as whole numbers, check labels and hide labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.stored import Array

#: Largest number of label names that a description lists.
NAMED_LABELS = 12

#: The label of data without a known label.
UNKNOWN = -1

#: Types that labels may have. A bool or uint8 tensor would index as a mask, and unsigned types have no -1.
WHOLE_NUMBERS = (torch.int64, torch.int32)


def encode_labels(arrays: Sequence[Array], name: str = "labels") -> tuple[list[Tensor], str]:
    """Encode the labels of all splits as whole numbers from 0.

    Whole numbers from 0 to 999 stay unchanged, stored as integers or as floats. The number -1 or the text ``"-1"`` marks an
    unknown label, which becomes -1. Other numbers are sorted and numbered from 0. Texts are numbered in natural order:
    ``class-2`` comes before ``class-10``.

    Floats of shape ``(N, C)`` that are not one-hot are vectors, not labels, and stay unchanged. Floats of shape ``(N,)`` or
    ``(N, 1)`` are vectors if at least one value is not whole.

    Args:
        arrays: Labels of each split, shape ``(N,)`` or ``(N, 1)``, or vectors of each split, shape ``(N, C)``.
        name: Name of the labels for error messages.

    Returns:
        For each split, labels of shape ``(N,)``, int64, or vectors of shape ``(N, C)``, float32; and a description. The
        description gives the number of classes and, for labels that are not whole numbers, the name of each class.

    Raises:
        ValueError: If the labels have another shape, a label is missing or not finite, or a whole number is below -1.
    """
    if any(_holds_vectors(np.asarray(array)) for array in arrays):
        return _vectors([np.asarray(array) for array in arrays], name)
    flat = _whole_numbers([_flat(np.asarray(array), name) for array in arrays])
    whole = np.concatenate(flat)
    if whole.dtype.kind in "iub":
        _check_sign(flat, name)
        known = whole[whole != UNKNOWN] if whole.dtype.kind != "b" else whole
        if known.size and known.max() < 1000:
            return [torch.from_numpy(part.astype(np.int64)) for part in flat], _count(len(np.unique(known)))
    numbers = whole.dtype.kind in "iuf"
    named = whole.tolist() if numbers else [str(v) for v in whole]
    values = sorted({v for v in named if not _is_unknown(v)}, key=None if numbers else _natural_key)
    number = {value: k for k, value in enumerate(values)}
    as_key = (lambda v: v) if numbers else str
    encoded = [
        torch.tensor([number.get(as_key(v), UNKNOWN) for v in part.tolist()], dtype=torch.int64) for part in flat
    ]
    shown = ", ".join(
        [f"{k} = {v}" for k, v in enumerate(values[:NAMED_LABELS])] + ["..."] * (len(values) > NAMED_LABELS)
    )
    return encoded, _count(len(values)) + (f": {shown}" if shown else "")


def num_classes(labels: Iterable[Tensor | None]) -> int | None:
    """Return the number of classes.

    Args:
        labels: The labels of each split, the vectors of each split, or None for a split without labels.

    Returns:
        The largest label plus 1; for vectors, their length C; None without labels.
    """
    labels = list(labels)
    if sizes := [y.shape[1] for y in labels if are_vectors(y) and y is not None]:
        return max(sizes)
    largest = [int(y.max()) for y in labels if y is not None and y.dim() == 1 and y.numel()]
    return 1 + max(largest) if largest and max(largest) >= 0 else None


def are_vectors(y: Tensor | None) -> bool:
    """Return True if ``y`` holds vectors: floats of shape ``(N, C)``."""
    return y is not None and y.dim() == 2 and y.is_floating_point()


def keep_labels(y: Tensor | None, count: int, seed: int) -> Tensor:
    """Hide all labels except ``count``, spread equally over the classes.

    If ``count`` is not a multiple of the number of classes, some classes keep one label more than others.

    Args:
        y: Labels, shape ``(N,)``, int64, -1 where unknown.
        count: Number of labels to keep.
        seed: Seed for the choice of the labels.

    Returns:
        Labels, shape ``(N,)``, int64, -1 where unknown or hidden.

    Raises:
        ValueError: If there are no labels, there are fewer than ``count`` labels, a class has too few labels, or ``count`` is
            below the number of classes.
    """
    if are_vectors(y):
        raise ValueError(
            f"labels: cannot keep {count:,} labels, since these data have vectors instead; remove --labels."
        )
    if y is None or not bool((y >= 0).any()):
        raise ValueError(f"labels: cannot keep {count:,} labels, since these data have no labels; remove --labels.")
    generator = torch.Generator().manual_seed(seed)
    classes = y[y >= 0].unique()
    if not len(classes) <= count <= int((y >= 0).sum()):
        raise ValueError(
            f"labels: expected from {len(classes)} (one of each class) to {int((y >= 0).sum()):,} (all labels), got "
            f"{count:,}; remove --labels to keep all."
        )
    share, more = divmod(count, len(classes))
    extra = set(classes[torch.randperm(len(classes), generator=generator)[:more]].tolist())
    kept = torch.full_like(y, UNKNOWN)
    for label in classes.tolist():
        rows = (y == label).nonzero()[:, 0]
        keep = share + (label in extra)
        if len(rows) < keep:
            raise ValueError(
                f"labels: {count:,} labels need {keep:,} of class {label}, but the data have {len(rows):,}; keep fewer "
                "labels."
            )
        kept[rows[torch.randperm(len(rows), generator=generator)[:keep]]] = label
    return kept


def check_labels(y: Tensor, classes: int | None, complete: bool) -> None:
    """Check that a model can use these labels.

    Args:
        y: Labels, shape ``(N,)``, int64; or, if ``complete`` is True, vectors, shape ``(N, C)``, floats.
        classes: Number of classes C of the model. None allows any number of classes; then only one-dimensional labels are
            checked.
        complete: True if the model needs the label of every datum.

    Raises:
        ValueError: If ``y`` has another shape or type, a label is below -1 or at least C, or a needed label is missing.
    """
    if y.is_floating_point() and complete and y.dim() == 2 and y.shape[1] == classes:
        return
    if y.dim() != 1 or y.dtype not in WHOLE_NUMBERS:
        if classes is None:
            return
        vectors = f", or vectors, floats of shape (N, {classes})" if complete else ""
        got = f"{'vectors, ' * are_vectors(y)}{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
        remedy = "convert them (y.long(), y[:, 0], y.argmax(1))"
        if are_vectors(y) and not complete:
            remedy += ", or take --model conditional, which takes vectors"
        raise ValueError(f"labels: expected whole numbers, int64 of shape (N,){vectors}, got {got}; {remedy}.")
    bad = (y < UNKNOWN) if classes is None else (y < UNKNOWN) | (y >= classes)
    if bool(bad.any()):
        row, most = int(bad.long().argmax()), "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"labels: expected whole numbers from 0{most}, or -1 for unknown, got {int(y[row])} in row {row}; number the "
            "classes from 0."
        )
    if complete and bool((y == UNKNOWN).any()):
        row = int((y == UNKNOWN).long().argmax())
        raise ValueError(
            f"labels: this model needs a label for every datum, but row {row} has none (-1); remove unlabelled data, or take "
            "a model that classifies, such as m2."
        )


def _count(number: int) -> str:
    return f"{number} label{'s' * (number != 1)}"


def _holds_vectors(values: Array) -> bool:
    if values.ndim not in (1, 2) or values.dtype.kind != "f":
        return False
    values = values.reshape(len(values), -1)
    if bool(np.all((values == 0) | (values == 1)) and np.all(values.sum(1) == 1)):
        return False  # one-hot rows are labels
    return values.shape[1] > 1 or not bool(np.all((values == np.floor(values)) | np.isnan(values)))


def _vectors(parts: list[Array], name: str) -> tuple[list[Tensor], str]:
    """Check and return the label vectors of every split, with a description."""
    size = max((part.shape[-1] for part in parts if part.ndim == 2), default=1)
    parts = [part[:, None] if part.ndim == 1 and size == 1 else part for part in parts]
    for part in parts:
        if part.ndim != 2 or part.shape[1] != size or part.dtype.kind not in "iubf":
            raise ValueError(
                f"{name}: expected vectors of {size} numbers in every split, got {part.dtype} of shape {part.shape}; save the "
                "vectors of all splits in one form."
            )
    encoded = [torch.from_numpy(part.astype(np.float32)) for part in parts]
    for vectors in encoded:
        if not bool(vectors.isfinite().all()):
            row = int((~vectors.isfinite()).any(1).long().argmax())
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in row {row}; remove these data, or fill in values."
            )
    return encoded, f"vectors of {size} number{'s' * (size != 1)} in the place of labels"


def _flat(values: Array, name: str) -> Array:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        hint = (
            "for one-hot rows save labels.argmax(1), save vectors as floats"
            if values.ndim == 2
            else "reshape the labels"
        )
        raise ValueError(f"{name}: expected one label for each datum, shape (N,), got shape {values.shape}; {hint}.")
    missing = np.array([_is_missing(value) for value in values.tolist()], dtype=bool)
    if missing.any():
        raise ValueError(
            f"{name}: row {int(missing.argmax())} has no label; write -1 for an unknown label, or remove unlabelled data."
        )
    return values


def _is_missing(value: object) -> bool:
    """Return True for None, NaN and blank text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _whole_numbers(parts: list[Array]) -> list[Array]:
    """Convert the arrays to integers if every value is whole."""
    if not any(part.dtype.kind == "f" for part in parts) or any(part.dtype.kind not in "iubf" for part in parts):
        return parts
    whole = all(bool(np.all((part == np.floor(part)) & (np.abs(part) < 2**53))) for part in parts)
    return [part.astype(np.int64) for part in parts] if whole else parts


def _check_sign(parts: list[Array], name: str) -> None:
    for part in parts:
        if part.dtype.kind == "i" and (part < UNKNOWN).any():
            row = int((part < UNKNOWN).argmax())
            raise ValueError(
                f"{name}: expected whole numbers from 0, or -1 for unknown, got {part[row]} in row {row}; number the "
                "classes from 0."
            )


def _is_unknown(value: object) -> bool:
    return value.strip() in ("-1", "-1.0") if isinstance(value, str) else value == UNKNOWN


def _natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key to sort texts by the numbers in them."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
