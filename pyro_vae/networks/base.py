"""The base classes of networks, with one input or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

Shapes = Sequence[Sequence[int]]


class JoinedNetwork(nn.Module, ABC):
    """Base class of networks with several inputs.

    The constructor takes ``(in_shapes, out_shape, hidden, activation)``.

    Args:
        in_shapes: Shape of each input, such as ``[(1, 28, 28), (10,)]``.
        out_shape: Shape of the output.
    """

    def __init__(self, in_shapes: Shapes, out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shapes, self.out_shape = tuple(map(tuple, in_shapes)), tuple(out_shape)

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the inputs to an output of shape ``(..., *out_shape)``.

        Each input has the shape ``(..., *in_shape)``; the leading dimensions broadcast.
        """


class Network(nn.Module, ABC):
    """Base class of networks with one input.

    The constructor takes ``(in_shape, out_shape, hidden, activation)``.

    Args:
        in_shape: Shape of the input, such as ``(1, 28, 28)``.
        out_shape: Shape of the output.

    Attributes:
        joined: The class that makes the same kind of network with several inputs; None if there is no such class.
        arguments: The constructor's further arguments: a dict from each name to an example value of the right type.
    """

    joined: ClassVar[type[JoinedNetwork] | None] = None
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map inputs of shape ``(..., *in_shape)`` to outputs of shape ``(..., *out_shape)``."""
