"""Checks that a model has what :mod:`pyro_vae.models.protocol` asks for, and that data fit it."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, cast

from torch import Tensor, nn

from pyro_vae.data import Data, Inputs, Split, Stored
from pyro_vae.data.labels import UNKNOWN, check_labels
from pyro_vae.models.protocol import classifies, data_support, takes

#: The columns of the data.
COLUMNS = ("x", "y")

#: What a likelihood may ask of pixels: 0 and 1, numbers in [0, 1], any numbers.
SUPPORTS = ("binary", "unit", "real")

#: What ``fit`` takes as training data.
TrainingData = Data | Tensor | Stored | tuple[Tensor, ...]


def as_data(model: Any, given: TrainingData) -> Data:
    """Training data as :class:`Data`: a tensor, or a tuple of the columns that the model takes.

    Raises:
        ValueError: If they are other columns, or of unequal lengths.
    """
    if isinstance(given, Data):
        return given
    columns = given if isinstance(given, tuple) else (given,)
    names = takes(model)
    if len(columns) != len(names):
        raise ValueError(
            f"data: expected {' and '.join(names)}, which {type(model).__name__} takes, got {len(columns)} "
            f"column{'s' * (len(columns) != 1)}; pass {'a tensor' if len(names) == 1 else 'a tuple of them'}."
        )
    x, *y = Inputs(*columns).parts
    return Data("data", Split(x, cast(Tensor, y[0]) if y else None))


def check_model(model: Any, where: str = "") -> None:
    """Refuse what lacks a part of the protocol.

    Args:
        model: The model.
        where: What the sentence calls it; "": its class.

    Raises:
        TypeError: If it is no ``nn.Module``.
        ValueError: If a part is missing or another than it should be.
    """
    where = where or type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: expected a torch.nn.Module, got {type(model).__name__}; make the class one.")
    names = takes(model)
    if names not in (COLUMNS[:1], COLUMNS):
        raise ValueError(f"{where}.takes: expected ('x',) or ('x', 'y'), got {names}; other columns there are none.")
    classes = getattr(model, "num_classes", None)
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise ValueError(
            f"{where}.num_classes: expected how many labels it knows, got {classes!r}; give a whole number."
        )
    _check_words(model, where)
    for part in ("model", "guide"):
        function = getattr(model, part, None)
        if not callable(function):
            raise ValueError(
                f"{where}.{part}: expected a Pyro function of {', '.join(names)}, got none; write {part}(self, "
                f"{', '.join(names)})."
            )
        if (given := _unlike(function, len(names))) is not None:
            raise ValueError(
                f"{where}.{part}: expected a function of {', '.join(names)}, which the class `takes`, got {part}{given}; let "
                "both say the same."
            )


def _check_words(model: Any, where: str) -> None:
    """Refuse attributes that would be read as something else than they say."""
    if not isinstance(bound := getattr(model, "has_bound", True), bool):
        raise ValueError(f"{where}.has_bound: expected True or False, got {bound!r}; correct the class.")
    for name in ("sampled", "trained_on"):
        if not isinstance(words := getattr(model, name, ""), str):
            raise ValueError(f"{where}.{name}: expected words, got {words!r}; correct the class.")
    if (support := data_support(model)) is not None and support not in SUPPORTS:
        raise ValueError(
            f"{where}.likelihood.support: expected one of {', '.join(map(repr, SUPPORTS))}, got {support!r}; correct the "
            "class, or leave it out."
        )


def unregistered_message(name: str) -> str:
    """What is wrong with a model whose parameters Pyro never meets: it would stay as it was made."""
    return (
        f"model {name}: expected parameters that Pyro knows of, got a model and a guide that register none, so that nothing "
        'would be trained; begin both with pyro.module("NAME", self), or a pyro_vae.models.Model with self._register("PART").'
    )


def unsaved_message(parameter: str) -> str:
    """What is wrong with a parameter that the store alone holds: no checkpoint of the model has it."""
    return (
        f"parameter {parameter!r}: expected a parameter of the model's modules, got one of pyro.param alone, which fit could "
        "not save; make it an nn.Parameter or a PyroParam of the model."
    )


def check_inputs(model: Any, data: Data) -> None:
    """Refuse data that lack what a model takes, or whose labels it does not know.

    Raises:
        ValueError: If labels are missing, or there are others than the model has classes for.
    """
    names = takes(model)
    for name, split in data.splits.items():
        if "y" in names and split.y is None:
            raise ValueError(
                f"labels: expected some with {type(model).__name__}, which takes {' and '.join(names)}, got {name} data "
                f"without; take data with labels{', -1 where unknown,' if classifies(model) else ','} or another model."
            )
        if "y" in names and split.y is not None:
            check_labels(split.y, getattr(model, "num_classes", None), not classifies(model))


def warn_about_labels(model: Any, data: Data) -> None:
    """Say of a model that classifies, once, where no label or not every class is known to it in training."""
    y, classes = data.train.y, getattr(model, "num_classes", None)
    if "y" not in takes(model) or not classifies(model) or y is None or y.dim() != 1 or y.is_floating_point():
        return
    known = len(y[y != UNKNOWN].unique())
    name = type(model).__name__
    if known == 0:
        warnings.warn(
            f"labels: expected some for {name}, which learns to classify from them, got -1 (unknown) in every row; what it "
            "calls a class is then its own.",
            stacklevel=3,
        )
    elif classes is not None and known < classes:
        warnings.warn(
            f"labels: expected some of each of the {classes} classes of {name}, got some of {known}; of the others nothing "
            "tells it which is which.",
            stacklevel=3,
        )


def _unlike(function: Any, count: int) -> str | None:
    """The signature of a function that does not take so many columns; None where it does, or none can be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*range(count))
    except TypeError:
        return str(signature)
    return None


def check_classes(num_classes: int | None, model: str, least: int = 2) -> int:
    """The number of classes, or a sentence.

    Raises:
        ValueError: If it is None or below ``least``.
    """
    if num_classes is None:
        raise ValueError(f"num_classes: expected how many labels {model} knows, got none; take data that have labels.")
    if num_classes < least:
        why = "labels of one kind tell nothing" if least > 1 else "give the size of its vectors"
        raise ValueError(f"num_classes: expected at least {least}, got {num_classes}; {why}.")
    return num_classes
