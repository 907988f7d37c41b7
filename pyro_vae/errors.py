"""Checks of arguments, and functions that shorten the messages of errors."""

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
        remark: Text that follows the number ``least`` in the error message, such as ``" epoch"``.

    Raises:
        TypeError: If ``value`` is not a whole number.
        ValueError: If ``value`` is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__} {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}{remark}, got {value}.")


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Check that each argument is None or a whole number >= ``least``."""
    for name, value in counts.items():
        if value is not None:
            check_count(name, value, least)


def check_number(name: str, value: object, allowed: Callable[[float], bool], expected: str, remark: str = "") -> None:
    """Check that a value is a number in an allowed range.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        allowed: Function that returns True if a number is in the range.
        expected: Description of the range, such as ``"a finite number"``.
        remark: Text at the end of the error message.

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
    """Check that data have at least one row.

    The first tensor with a dimension is checked.

    Args:
        *inputs: The data: tensors, or nested lists, tuples and dicts of tensors. Other objects and 0-dim tensors are
            ignored.

    Raises:
        ValueError: If the first tensor with at least one dimension has no rows.
    """
    tensors = [x for x in _pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    if tensors and len(tensors[0]) == 0:
        raise ValueError(f"data: expected at least one datum, got a tensor of shape {tuple(tensors[0].shape)}.")


def clear_data_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it refuses empty data and shortens errors.

    Pyro adds a table of trace shapes to error messages; the decorated function removes this table.
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

    If the message is empty, return the name of the error's type.
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def error_summary(error: BaseException) -> str:
    """Return an error's type and first line, without a final full stop."""
    name, line = type(error).__name__, first_line(error).rstrip(".")
    return name if line == name else f"{name}: {line}"
