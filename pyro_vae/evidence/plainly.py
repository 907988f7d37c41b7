"""What every public function of the package asks of its arguments, and how it refuses them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree

F = TypeVar("F", bound=Callable[..., Any])


def plainly(function: F) -> F:
    """Have a function refuse an empty data set, and what is refused within a trace without the table that Pyro adds."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
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
