"""The base classes of networks with one input and with several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

Shapes = Sequence[Sequence[int]]


class JoinedNetwork(nn.Module, ABC):
    """A network with several inputs, made from ``(in_shapes, out_shape, hidden, activation)``.

    Args:
        in_shapes: Shape of each input, such as ``[(1, 28, 28), (10,)]``.
        out_shape: Shape of the output.
    """

    def __init__(self, in_shapes: Shapes, out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shapes, self.out_shape = tuple(map(tuple, in_shapes)), tuple(out_shape)

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs, shapes ``(..., *in_shape)``, to an output, shape ``(..., *out_shape)``.

        Leading dimensions broadcast.
        """


class Network(nn.Module, ABC):
    """A network with one input, made from ``(in_shape, out_shape, hidden, activation)``.

    Args:
        in_shape: Shape of the input, such as ``(1, 28, 28)``.
        out_shape: Shape of the output.

    Attributes:
        joined: Class of the same kind of network with several inputs; None if this kind has a single input only.
        arguments: Names of the constructor's arguments after ``activation``, each with an example value of the argument's type.
    """

    joined: ClassVar[type[JoinedNetwork] | None] = None
    arguments: ClassVar[Mapping[str, int | float]] = {}

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map an input, shape ``(..., *in_shape)``, to an output, shape ``(..., *out_shape)``."""
