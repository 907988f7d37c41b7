"""Networks of a model: a given module, a function that makes one, or the default perceptron."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_vae.errors import first_line
from pyro_vae.networks import MLP
from pyro_vae.networks.mlp import Joined

#: A network: a module; or what makes one as ``networks.MLP`` is made, from ``in_shape``, ``out_shape``, ``hidden`` and
#: ``activation``; or None, for that perceptron itself.
Network = nn.Module | Callable[[Sequence[int], Sequence[int], Sequence[int], str], nn.Module] | None


def make_network(
    given: Network, in_shape: Sequence[int], out_shape: Sequence[int], hidden: Sequence[int], activation: str
) -> nn.Module:
    """A network between tensors of these shapes: the perceptron, the module that is given, or one that it makes.

    Raises:
        ValueError: If it does not run on such tensors, or gives others.
    """
    if given is None:
        return MLP(in_shape, out_shape, hidden, activation)
    if not isinstance(given, nn.Module):
        check_maker(given)
    found = given if isinstance(given, nn.Module) else given(in_shape, out_shape, hidden, activation)
    if not isinstance(found, nn.Identity):  # which stands for a network that is not there
        check_network(found, [in_shape], out_shape)
    return found


def check_maker(given: Callable[..., Any]) -> None:
    """Refuse what cannot be called as networks are made, with in_shape, out_shape, hidden and activation.

    Raises:
        ValueError: If it takes other arguments, or is nothing to call.
    """
    if not callable(given):
        raise ValueError(f"network: expected a module, or what makes one, got {given!r}; give one of these.")
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # of some built-in ones none can be read
        return
    try:
        signature.bind((), (), (), "")
    except TypeError:
        name = getattr(given, "__name__", type(given).__name__)
        raise ValueError(
            f"network {name}: expected it made from (in_shape, out_shape, hidden, activation), got {name}{signature}; give it "
            "these four parameters, or make it yourself and pass the module."
        ) from None


@torch.no_grad()
def check_network(found: nn.Module, in_shapes: Sequence[Sequence[int]], out_shape: Sequence[int]) -> None:
    """Refuse a network that does not lead from tensors of these shapes, behind a batch of 2, to those of that one.

    Args:
        found: The network.
        in_shapes: Of each of its inputs.
        out_shape: Of its output.

    Raises:
        ValueError: If it fails on zeros of these shapes, or gives another shape.
    """
    like = next((p for p in found.parameters() if p.is_floating_point()), torch.zeros(()))
    zeros = [torch.zeros(2, *shape, dtype=like.dtype, device=like.device) for shape in in_shapes]
    name, takes = type(found).__name__, " and ".join(str((2, *shape)) for shape in in_shapes)
    was_training = found.training
    found.eval()  # else statistics of a batch would be those of zeros
    try:
        given = found(*zeros)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = first_line(error).rstrip(".")
        raise ValueError(
            f"network {name}: expected one that takes {takes}, got one that fails on it ({reason}); make its layers fit these "
            "data, or give it larger ones."
        ) from error
    finally:
        found.train(was_training)
    if not isinstance(given, Tensor) or tuple(given.shape) != (2, *out_shape):
        got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"network {name}: expected it to make {(2, *out_shape)} of {takes}, got {got}; let its last layer have the "
            "out_shape that it is made with."
        )


Shapes = Sequence[Sequence[int]]


#: A network of several inputs: a module; or what makes one as ``networks.joined.Joined`` is made; or None, for that itself.
JoinedNetwork = nn.Module | Callable[[Shapes, Sequence[int], Sequence[int], str], nn.Module] | None


def make_joined_network(
    given: JoinedNetwork,
    in_shapes: Shapes,
    out_shape: Sequence[int],
    hidden: Sequence[int],
    activation: str,
) -> nn.Module:
    """A network of several inputs: the perceptron, the module that is given, or one that it makes; of one, as ``network``."""
    if len(in_shapes) == 1:
        return make_network(cast(Network, given), in_shapes[0], out_shape, hidden, activation)
    if given is None:
        return Joined(in_shapes, out_shape, hidden, activation)
    found = given if isinstance(given, nn.Module) else given(in_shapes, out_shape, hidden, activation)
    check_network(found, in_shapes, out_shape)
    return found
