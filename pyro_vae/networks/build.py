"""Functions that make a model's networks from names, callables or modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae.errors import first_line
from pyro_vae.lookup import parse_part
from pyro_vae.networks.base import Shapes
from pyro_vae.networks.registry import NETWORKS

#: A callable that makes a network from the arguments of ``networks.MLP``: ``(in_shape, out_shape, hidden, activation)``.
NetworkMaker = Callable[[Sequence[int], Sequence[int], Sequence[int], str], nn.Module]

#: A callable that makes a network with several inputs, from ``(in_shapes, out_shape, hidden, activation)``.
JoinedNetworkMaker = Callable[[Shapes, Sequence[int], Sequence[int], str], nn.Module]

#: A constructor's argument for a network: a module, a callable that makes a module, or None for the model's own kind.
NetworkLike = nn.Module | NetworkMaker | None

#: A constructor's argument for a network with several inputs.
JoinedNetworkLike = nn.Module | JoinedNetworkMaker | None


class NetworkFactory:
    """Makes a model's networks, all of one kind.

    Args:
        network: The kind of network: a name from ``networks.NETWORKS``, with arguments as in ``"NAME:ARG:ARG"``; or a
            callable that takes the arguments of ``networks.MLP`` and returns a network. The callable's attribute ``joined``
            returns networks with several inputs.
        activation: Name of the activation, see ``networks.ACTIVATIONS``.

    Raises:
        ValueError: If ``network`` is an unknown name, a module, or a callable with other parameters.
    """

    def __init__(self, network: str | NetworkMaker, activation: str) -> None:
        if isinstance(network, str):
            parse_part("network", network, NETWORKS)
        elif isinstance(network, nn.Module):
            raise ValueError(
                f"network: expected a name, or a callable that makes a module, got a module, {type(network).__name__}; pass "
                "modules as encoder= and decoder=."
            )
        else:
            check_maker(network)
        self.network, self.activation = network, activation

    def __call__(
        self, given: NetworkLike | JoinedNetworkLike, in_shapes: Shapes, out_shape: Sequence[int], hidden: Sequence[int]
    ) -> nn.Module:
        """Return a network that maps ``in_shapes`` to ``out_shape``.

        Args:
            given: A module to use; or a callable that makes the module; or None to make a network of this factory's kind.
            in_shapes: Shape of each input.
            out_shape: Shape of the output.
            hidden: Widths of the hidden layers.

        Raises:
            ValueError: If the network fails on inputs of ``in_shapes``, or its output has another shape than ``out_shape``.
        """
        if isinstance(given, nn.Module):
            made = given
        else:
            if given is not None:
                check_maker(given)
            make: Callable[..., nn.Module] = given or self._maker(several=len(in_shapes) > 1)
            made = make(in_shapes if len(in_shapes) > 1 else in_shapes[0], out_shape, hidden, self.activation)
        trusted = given is None and isinstance(self.network, str)
        if not trusted and not isinstance(made, nn.Identity):  # an Identity marks a network that is not used
            check_network(made, in_shapes, out_shape)
        return made

    def _maker(self, several: bool) -> Callable[..., nn.Module]:
        """Return the callable that makes networks with one or several inputs."""
        args: list[float] = []
        kind: object = self.network
        if isinstance(self.network, str):
            kind, args = parse_part("network", self.network, NETWORKS)
        make = getattr(kind, "joined", None) if several else kind
        if not callable(make):
            names = ", ".join(name for name, cls in NETWORKS.items() if cls.joined is not None)
            raise ValueError(
                f"network: this model needs networks with several inputs, but {_name(self.network)} has one input; choose from "
                f"{names}, or pass the networks as modules."
            )
        return lambda *sizes: make(*sizes, *args)


def _name(given: object) -> str:
    return given if isinstance(given, str) else str(getattr(given, "__name__", type(given).__name__))


def check_maker(given: Callable[..., object]) -> None:
    """Check that a callable takes the arguments of a network's constructor.

    The arguments are ``(in_shape, out_shape, hidden, activation)``.

    Raises:
        ValueError: If ``given`` is not callable, or takes other arguments.
    """
    if not callable(given):
        raise ValueError(
            f"network: expected a module, or a callable that makes a module, got {given!r}; give a module or a callable."
        )
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # some built-in callables have no signature
        return
    try:
        signature.bind((), (), (), "")
    except TypeError:
        name = _name(given)
        raise ValueError(
            f"network {name}: expected the parameters (in_shape, out_shape, hidden, activation), got {name}{signature}; "
            "change the parameters, or pass a module."
        ) from None


@torch.no_grad()
def check_network(made: nn.Module, in_shapes: Shapes, out_shape: Sequence[int]) -> None:
    """Check that a network maps ``in_shapes`` to ``out_shape``.

    The check calls the network with a batch of two data, all zeros.

    Args:
        made: The network.
        in_shapes: Shape of each input.
        out_shape: Shape of the output.

    Raises:
        ValueError: If the network fails on the zeros, or its output has another shape than ``out_shape``.
    """
    like = next((p for p in made.parameters() if p.is_floating_point()), torch.zeros(()))
    zeros = [torch.zeros(2, *shape, dtype=like.dtype, device=like.device) for shape in in_shapes]
    name, inputs = type(made).__name__, " and ".join(str((2, *shape)) for shape in in_shapes)
    was_training = made.training
    made.eval()  # in train mode, batch statistics would include these zeros
    try:
        output = made(*zeros)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"network {name}: inputs of shape {inputs} give an error ({first_line(error).rstrip('.')}); make the layers fit "
            "these shapes, or use larger inputs."
        ) from error
    finally:
        made.train(was_training)
    if not isinstance(output, Tensor) or tuple(output.shape) != (2, *out_shape):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"network {name}: expected output shape {(2, *out_shape)} for input shape {inputs}, got {got}; let the last layer "
            "use out_shape."
        )
