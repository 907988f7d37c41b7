"""Checks that a model follows the protocol and that data suit it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from pyro_vae.data import Data, Inputs, Split, Stored
from pyro_vae.data.labels import UNKNOWN, check_labels
from pyro_vae.models.protocol import classifies, data_support, takes

#: The inputs a model may take.
INPUTS = ("x", "y")

#: The supports that a likelihood may declare: 0 or 1, numbers in [0, 1], real numbers.
SUPPORTS = ("binary", "unit", "real")

#: The types of training data that ``fit`` takes.
TrainingData = Data | Tensor | Stored | tuple[Tensor, ...]


def as_data(model: object, given: TrainingData) -> Data:
    """Convert training data to :class:`Data`.

    Args:
        model: The model.
        given: The training data: :class:`Data`; a tensor, if x is the model's only input; or a tuple with one tensor for each
            input of the model.

    Raises:
        ValueError: If the number of tensors differs from the number of the model's inputs, or the tensors have different
            lengths.
    """
    if isinstance(given, Data):
        return given
    tensors = given if isinstance(given, tuple) else (given,)
    names = takes(model)
    if len(tensors) != len(names):
        raise ValueError(
            f"data: expected {' and '.join(names)} for {type(model).__name__}, got {len(tensors)} "
            f"tensor{'s' * (len(tensors) != 1)}; pass {'one tensor' if len(names) == 1 else 'the tuple (x, y)'}."
        )
    x, *labels = Inputs(*tensors).parts
    return Data("data", Split(x, cast(Tensor, labels[0]) if labels else None))


def check_model(model: object, where: str = "") -> None:
    """Refuse a model that does not follow the protocol.

    Args:
        model: The model.
        where: The model's name in the error message; "" for the name of its class.

    Raises:
        TypeError: If the model is not an ``nn.Module``.
        ValueError: If a part of the protocol is missing or wrong.
    """
    where = where or type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: expected a torch.nn.Module, got {type(model).__name__}; subclass nn.Module.")
    names = takes(model)
    if names not in (INPUTS[:1], INPUTS):
        raise ValueError(f"{where}.takes: expected ('x',) or ('x', 'y'), got {names}; correct the class.")
    _check_attributes(model, where)
    for part in ("model", "guide"):
        function = getattr(model, part, None)
        if not callable(function):
            raise ValueError(
                f"{where}.{part}: expected a Pyro function of {', '.join(names)}, got none; write {part}(self, "
                f"{', '.join(names)})."
            )
        if (signature := _other_signature(function, len(names))) is not None:
            raise ValueError(
                f"{where}.{part}: expected a function of {', '.join(names)}, the inputs in `takes`, got {part}{signature}; "
                f"change {part} or `takes`."
            )


def _check_attributes(model: nn.Module, where: str) -> None:
    """Check the values of the attributes that the protocol defines."""
    classes = getattr(model, "num_classes", None)
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise ValueError(
            f"{where}.num_classes: expected the number of labels, at least 1, got {classes!r}; correct the class."
        )
    if not isinstance(bound := getattr(model, "has_bound", True), bool):
        raise ValueError(f"{where}.has_bound: expected True or False, got {bound!r}; correct the class.")
    for name in ("sampled", "trained_on"):
        if not isinstance(text := getattr(model, name, ""), str):
            raise ValueError(f"{where}.{name}: expected a string, got {text!r}; correct the class.")
    if (support := data_support(model)) is not None and support not in SUPPORTS:
        raise ValueError(
            f"{where}.likelihood.support: expected one of {', '.join(map(repr, SUPPORTS))}, got {support!r}; correct the "
            "class, or remove `support`."
        )


def _other_signature(function: Callable[..., object], count: int) -> str | None:
    """Return the signature if ``function`` does not accept ``count`` arguments, else None."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*range(count))
    except TypeError:
        return str(signature)
    return None


def unregistered_message(name: str) -> str:
    """Return the error message for a model without parameters registered with Pyro."""
    return (
        f"model {name}: expected parameters registered with Pyro, got none, so nothing would be trained; begin model and "
        'guide with pyro.module("NAME", self), or with self._register("PART") in a pyro_vae.models.Model.'
    )


def unsaved_message(parameter: str) -> str:
    """Return the error message for a ``pyro.param`` that belongs to no module."""
    return (
        f"parameter {parameter!r}: expected a parameter of the model's modules, got a pyro.param outside of them, which fit "
        "cannot save; declare an nn.Parameter or a PyroParam."
    )


def check_inputs(model: object, data: Data) -> None:
    """Check that the data have the labels that a model needs.

    Raises:
        ValueError: If a split has no labels, or a label is not one of the model's classes.
    """
    names = takes(model)
    if "y" not in names:
        return
    for name, split in data.splits.items():
        if split.y is None:
            raise ValueError(
                f"labels: {type(model).__name__} needs labels, but the {name} data have none; use data with labels"
                f"{' (-1 where unknown)' if classifies(model) else ''}, or another model."
            )
        check_labels(split.y, getattr(model, "num_classes", None), not classifies(model))


def warn_about_labels(model: object, data: Data) -> None:
    """Warn if a class has no labelled training datum.

    The warning concerns only models with ``classify``.
    """
    y, classes = data.train.y, getattr(model, "num_classes", None)
    if "y" not in takes(model) or not classifies(model) or y is None or y.dim() != 1 or y.is_floating_point():
        return
    known = len(y[y != UNKNOWN].unique())
    name = type(model).__name__
    if known == 0:
        warnings.warn(
            f"labels: the classifier of {name} needs labels, but every label is -1 (unknown); the predicted class "
            "numbers will be arbitrary.",
            stacklevel=3,
        )
    elif classes is not None and known < classes:
        warnings.warn(
            f"labels: {name} has {classes} classes, but the training data have labels of only {known}; the numbers of the "
            "other classes will be arbitrary.",
            stacklevel=3,
        )


def check_classes(num_classes: int | None, model: str, least: int = 2) -> int:
    """Return the number of classes after checking its lower bound, ``least``.

    Raises:
        ValueError: If ``num_classes`` is None or below ``least``.
    """
    if num_classes is None:
        raise ValueError(
            f"num_classes: {model} needs the number of classes, got none; pass num_classes, or data with labels."
        )
    if num_classes < least:
        reason = "one class carries no information" if least > 1 else "give the size of the label vectors"
        raise ValueError(f"num_classes: expected at least {least}, got {num_classes}; {reason}.")
    return num_classes
