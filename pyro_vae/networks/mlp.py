"""Multilayer perceptrons with one input or several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.lookup import lookup
from pyro_vae.networks.base import JoinedNetwork, Network

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky-relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def _check_widths(widths: Sequence[int], hidden: Sequence[int]) -> None:
    """Check that all widths of layers are at least 1."""
    if min(widths) < 1:
        raise ValueError(
            f"hidden: expected widths of at least 1, got {list(hidden)}; leave hidden empty for a linear map."
        )


class Joined(JoinedNetwork):
    r"""Multilayer perceptron with several inputs.

    .. math:: h_1 = a\big(\textstyle\sum_i V_i\, \mathrm{vec}(x_i) + b_1\big), \quad h_l = a(W_l h_{l-1} + b_l), \quad
        y = W h_L + b

    Here a is the activation. The network computes the same function as an :class:`MLP` of the concatenated inputs. The leading
    dimensions broadcast only after the first layer: an image that is combined with ten labels passes the first layer once.
    Without hidden layers the network is an affine map.

    Args:
        in_shapes: Shape of each input, such as ``[(1, 28, 28), (10,)]``.
        out_shape: Shape of one output.
        hidden: Width of each hidden layer; empty for an affine map.
        activation: A name from ``ACTIVATIONS``.

    Raises:
        ValueError: If a width or a shape is not positive, or the activation is unknown.
    """

    def __init__(
        self,
        in_shapes: Sequence[Sequence[int]],
        out_shape: Sequence[int],
        hidden: Sequence[int] = (),
        activation: str = "relu",
    ) -> None:
        super().__init__(in_shapes, out_shape)
        sizes = [math.prod(shape) for shape in in_shapes]
        _check_widths([*sizes, *hidden, math.prod(out_shape)], hidden)
        make = lookup("activation", activation, ACTIVATIONS)
        width = hidden[0] if hidden else sum(sizes)
        # The layers' outputs are added, so one bias is enough. Without hidden layers, the inputs are concatenated.
        self.first = nn.ModuleList(nn.Linear(size, width, bias=not i) for i, size in enumerate(sizes) if hidden)
        layers: list[nn.Module] = [make()] if hidden else []
        for fan_in, fan_out in itertools.pairwise(hidden):
            layers += [nn.Linear(fan_in, fan_out), make()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1] if hidden else width, math.prod(out_shape))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the inputs to an output of shape ``(..., *out_shape)``.

        Each input has the shape ``(..., *in_shape)``; the leading dimensions broadcast.
        """
        flat = [
            x if len(shape) == 1 else x.flatten(-len(shape)) for x, shape in zip(inputs, self.in_shapes, strict=True)
        ]
        if self.first:
            h = sum((layer(x) for layer, x in zip(self.first[1:], flat[1:], strict=True)), start=self.first[0](flat[0]))
        else:
            lead = torch.broadcast_shapes(*(x.shape[:-1] for x in flat))
            h = torch.cat([x.expand(*lead, x.shape[-1]) for x in flat], -1)
        y = self.head(self.layers(h))
        return y if len(self.out_shape) == 1 else y.unflatten(-1, self.out_shape)


class MLP(Network):
    r"""Multilayer perceptron between tensors of any shape.

    .. math:: h_0 = \mathrm{vec}(x), \quad h_l = a(W_l h_{l-1} + b_l), \quad y = W h_L + b

    Here a is the activation. Without hidden layers the network is an affine map. All leading dimensions are batch dimensions,
    so a particle dimension needs no reshaping.

    Args:
        in_shape: Shape of one input, such as ``(1, 28, 28)``.
        out_shape: Shape of one output.
        hidden: Width of each hidden layer; empty for an affine map.
        activation: A name from ``ACTIVATIONS``.

    Raises:
        ValueError: If a width or a shape is not positive, or the activation is unknown.
    """

    joined: ClassVar[type[JoinedNetwork] | None] = Joined

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], hidden: Sequence[int] = (), activation: str = "relu"
    ) -> None:
        super().__init__(in_shape, out_shape)
        widths = [math.prod(in_shape), *hidden, math.prod(out_shape)]
        _check_widths(widths, hidden)
        make = lookup("activation", activation, ACTIVATIONS)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(fan_in, fan_out), make()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs of shape ``(..., *in_shape)`` to outputs of shape ``(..., *out_shape)``."""
        # A vector is not flattened: even a flatten that changes nothing adds a node to the backward pass.
        h = x if len(self.in_shape) == 1 else x.flatten(-len(self.in_shape))
        y = self.head(self.layers(h))
        return y if len(self.out_shape) == 1 else y.unflatten(-1, self.out_shape)
