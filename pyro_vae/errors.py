"""Checks of arguments, and the text of errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import ParamSpec, TypeVar

from torch import Tensor
from torch.utils import _pytree

P = ParamSpec("P")
T = TypeVar("T")


def check_count(name: str, value: object, least: int = 1, remark: str = "") -> None:
    """Check that a value is a whole number of at least ``least``.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        least: The smallest allowed number.
        remark: Text that follows ``least`` in the error, such as ``" epoch"``.

    Raises:
        TypeError: If ``value`` is not a whole number.
        ValueError: If ``value`` is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__} {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}{remark}, got {value}.")


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Check that each argument is None or a whole number from ``least``."""
    for name, value in counts.items():
        if value is not None:
            check_count(name, value, least)


def check_number(name: str, value: object, allowed: Callable[[float], bool], expected: str, remark: str = "") -> None:
    """Check that a value is a number in a range.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        allowed: Function that returns True for a number in the range.
        expected: Description of the range, such as ``"a finite number"``.
        remark: Text at the end of the error.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If ``value`` is out of the range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} {value!r}{remark}.")
    if not allowed(float(value)):
        raise ValueError(f"{name}: expected {expected}, got {value}{remark}.")


def check_nats(name: str, value: object) -> None:
    """Check that a value is a positive, finite number of nats.

    Args:
        name: Name of the argument.
        value: Value of the argument.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If ``value`` is not finite, or not above 0.
    """
    check_number(
        name, value, lambda v: math.isfinite(v) and v > 0, "a positive number of nats", "; leave it out for none"
    )


def check_data(*inputs: object) -> None:
    """Check that the first tensor with a dimension is not empty.

    Args:
        *inputs: Tensors, or nested lists, tuples and dicts of tensors; other objects are ignored.

    Raises:
        ValueError: If this tensor has no rows.
    """
    tensors = [x for x in _pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    if tensors and len(tensors[0]) == 0:
        raise ValueError(f"data: expected at least one datum, got a tensor of shape {tuple(tensors[0].shape)}.")


def clear_data_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to refuse empty data and shorten Pyro's errors.

    Pyro's table of trace shapes is removed from the message of an error.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        check_data(args, kwargs)
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            text = str(error)
            if "Trace Shapes:" not in text:
                raise
            raise ValueError(text.split("Trace Shapes:")[0].strip()) from None

    return wrapped


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message.

    For an empty message, the name of the error's type is returned.
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def error_summary(error: BaseException) -> str:
    """Return the type and first line of an error, without full stop."""
    name, line = type(error).__name__, first_line(error).rstrip(".")
    return name if line == name else f"{name}: {line}"
