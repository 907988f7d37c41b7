"""Checks of arguments, and the sentences in which they are refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree


def check_count(name: str, value: Any, least: int = 1, remark: str = "") -> None:
    """Refuse what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__} {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}{remark}, got {value}.")


def check_number(name: str, value: Any, right: Callable[[float], bool], expected: str, remark: str = "") -> None:
    """Refuse what is no number, or not one that is ``right``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} {value!r}{remark}.")
    if not right(float(value)):
        raise ValueError(f"{name}: expected {expected}, got {value}{remark}.")


def check_nats(name: str, value: float) -> None:
    """Refuse what is no positive number of nats.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite, or not above 0.
    """
    check_number(
        name, value, lambda v: math.isfinite(v) and v > 0, "a positive number of nats", "; leave it out for none"
    )


def check_numbers(**numbers: int) -> None:
    """Refuse a number below 1.

    Raises:
        ValueError: If there is one.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")


F = TypeVar("F", bound=Callable[..., Any])


def plainly(function: F) -> F:
    """Have a function refuse an empty data set, and what is refused within a trace without the table that Pyro adds."""

    @functools.wraps(function)
    def wrapped(*args: object, **kwargs: object) -> Any:
        refuse_nothing(args, kwargs)
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            text = str(error)
            if "Trace Shapes:" not in text:
                raise
            raise ValueError(text.split("Trace Shapes:")[0].strip()) from None

    return wrapped  # type: ignore[return-value]


def refuse_nothing(*given: Any) -> None:
    """Refuse data of which there are none.

    Raises:
        ValueError: If the first tensor among them that has rows has no row.
    """
    tensors = [x for x in _pytree.tree_leaves(given) if isinstance(x, Tensor) and x.dim() > 0]
    if tensors and len(tensors[0]) == 0:
        raise ValueError(f"data: expected at least one datum, got a tensor of shape {tuple(tensors[0].shape)}.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def error_summary(error: BaseException) -> str:
    """Return the type of an error and the first line of its message, without the full stop."""
    name, line = type(error).__name__, first_line(error).rstrip(".")
    return name if line == name else f"{name}: {line}"
