"""Checks of models against the protocol, and of data against models."""

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

#: The supports a likelihood may declare: 0 and 1, numbers in [0, 1], any real numbers.
SUPPORTS = ("binary", "unit", "real")

#: Training data as ``fit`` takes them.
TrainingData = Data | Tensor | Stored | tuple[Tensor, ...]


def as_data(model: object, given: TrainingData) -> Data:
    """Return training data as :class:`Data`.

    Args:
        model: The model.
        given: Data; or the tensor that the model takes, or a tuple of them.

    Raises:
        ValueError: If the model takes another number of tensors, or their lengths differ.
    """
    if isinstance(given, Data):
        return given
    tensors = given if isinstance(given, tuple) else (given,)
    names = takes(model)
    if len(tensors) != len(names):
        raise ValueError(
            f"data: expected {' and '.join(names)}, which {type(model).__name__} takes, got {len(tensors)} "
            f"tensor{'s' * (len(tensors) != 1)}; pass {'a tensor' if len(names) == 1 else 'a tuple of them'}."
        )
    x, *labels = Inputs(*tensors).parts
    return Data("data", Split(x, cast(Tensor, labels[0]) if labels else None))


def check_model(model: object, where: str = "") -> None:
    """Refuse a model that does not keep the protocol.

    Args:
        model: The model.
        where: Its name in the error; "": that of its class.

    Raises:
        TypeError: If it is not an ``nn.Module``.
        ValueError: If a part of the protocol is missing or wrong.
    """
    where = where or type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: expected a torch.nn.Module, got {type(model).__name__}; make the class one.")
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
                "make both agree."
            )


def _check_attributes(model: nn.Module, where: str) -> None:
    """Refuse attributes of the protocol with a wrong value."""
    classes = getattr(model, "num_classes", None)
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise ValueError(
            f"{where}.num_classes: expected the number of labels, at least 1, got {classes!r}; correct the class."
        )
    if not isinstance(bound := getattr(model, "has_bound", True), bool):
        raise ValueError(f"{where}.has_bound: expected True or False, got {bound!r}; correct the class.")
    for name in ("sampled", "trained_on"):
        if not isinstance(text := getattr(model, name, ""), str):
            raise ValueError(f"{where}.{name}: expected words, got {text!r}; correct the class.")
    if (support := data_support(model)) is not None and support not in SUPPORTS:
        raise ValueError(
            f"{where}.likelihood.support: expected one of {', '.join(map(repr, SUPPORTS))}, got {support!r}; correct the "
            "class, or leave it out."
        )


def _other_signature(function: Callable[..., object], count: int) -> str | None:
    """Return the signature if the function does not take ``count`` arguments."""
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
    """Return the error for a model without parameters registered with Pyro."""
    return (
        f"model {name}: expected parameters registered with Pyro, got none, so nothing would be trained; begin model and "
        'guide with pyro.module("NAME", self), or in a pyro_vae.models.Model with self._register("PART").'
    )


def unsaved_message(parameter: str) -> str:
    """Return the error for a parameter of ``pyro.param``, which no checkpoint holds."""
    return (
        f"parameter {parameter!r}: expected a parameter of the model's modules, got one of pyro.param alone, which fit cannot "
        "save; make it an nn.Parameter or a PyroParam."
    )


def check_inputs(model: object, data: Data) -> None:
    """Refuse data without the labels that a model takes.

    Raises:
        ValueError: If labels are missing, or are not those of the model's classes.
    """
    names = takes(model)
    if "y" not in names:
        return
    for name, split in data.splits.items():
        if split.y is None:
            raise ValueError(
                f"labels: expected some with {type(model).__name__}, which takes {' and '.join(names)}, got {name} data "
                f"without; take data with labels{', -1 where unknown,' if classifies(model) else ','} or another model."
            )
        check_labels(split.y, getattr(model, "num_classes", None), not classifies(model))


def warn_about_labels(model: object, data: Data) -> None:
    """Warn if a model that classifies lacks labels of a class."""
    y, classes = data.train.y, getattr(model, "num_classes", None)
    if "y" not in takes(model) or not classifies(model) or y is None or y.dim() != 1 or y.is_floating_point():
        return
    known = len(y[y != UNKNOWN].unique())
    name = type(model).__name__
    if known == 0:
        warnings.warn(
            f"labels: expected labels to train the classifier of {name}, got -1 (unknown) in every row; the numbers of its "
            "classes will mean nothing.",
            stacklevel=3,
        )
    elif classes is not None and known < classes:
        warnings.warn(
            f"labels: expected labels of all {classes} classes of {name}, got labels of {known}; the numbers of the others "
            "will mean nothing.",
            stacklevel=3,
        )


def check_classes(num_classes: int | None, model: str, least: int = 2) -> int:
    """Return the number of classes; refuse None and numbers below ``least``.

    Raises:
        ValueError: If it is None or below ``least``.
    """
    if num_classes is None:
        raise ValueError(f"num_classes: expected the number of classes of {model}, got none; take data with labels.")
    if num_classes < least:
        reason = "one class carries no information" if least > 1 else "give the size of its vectors"
        raise ValueError(f"num_classes: expected at least {least}, got {num_classes}; {reason}.")
    return num_classes
