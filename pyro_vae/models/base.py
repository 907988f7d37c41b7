"""What the models of the package have in common: a name of their own, and the columns of the data that they take."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.lookup import lookup
from pyro_vae.networks import MLP
from pyro_vae.registration import register

#: A network: a module; or what makes one as ``networks.MLP`` is made, from ``in_shape``, ``out_shape``, ``hidden`` and
#: ``activation``; or None, for that perceptron itself.
Network = nn.Module | Callable[[Sequence[int], Sequence[int], Sequence[int], str], nn.Module] | None

# Who holds which name in the parameter store: two models under one name would share the first one's parameters, and
# the second would silently never train. A name is not given again when its holder is gone, since the store is not.
_HOLDERS: dict[str, weakref.ref[nn.Module]] = {}
_NUMBERS = itertools.count(2)


class Model(nn.Module):
    """A generative model with its guide: ``model(*columns)`` and ``guide(*columns)``, Pyro functions of the same columns.

    Each draws its sites within one plate ``"data"`` and registers the networks that it uses by ``_register``.

    Args:
        data_shape: Shape of one datum, such as ``(1, 28, 28)``.
        latent_dim: Z, the size of the latent vector.

    Attributes:
        takes: The columns that ``model`` and ``guide`` take, in order: ``"x"``, data of shape ``(B, *data_shape)``, and
            ``"y"``, labels of shape ``(B,)``, int64, -1 where unknown.
        has_bound: Whether its objective bounds log p(x); the plain autoencoder's does not.
        objective: The objective it wants where none is named; None: any.

    Raises:
        ValueError: If a size is below 1.
    """

    takes: ClassVar[tuple[str, ...]] = ("x",)
    has_bound: ClassVar[bool] = True
    objective: ClassVar[str | None] = None

    def __init__(self, data_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim: expected at least 1, got {latent_dim}.")
        if min(data_shape, default=0) < 1:
            raise ValueError(f"data_shape: expected positive sizes such as (1, 28, 28), got {tuple(data_shape)}.")
        self.data_shape, self.latent_dim = tuple(data_shape), latent_dim

    @property
    def name(self) -> str:
        """The name under which this instance registers its networks, its own within the process (copies get another)."""
        kind = type(self).__name__.lower()
        held = self.__dict__.get("_name", kind)
        while held in _HOLDERS and _HOLDERS[held]() is not self:
            held = f"{kind}_{next(_NUMBERS)}"
        if held not in _HOLDERS:
            _HOLDERS[held] = weakref.ref(self)
            self.__dict__["_name"] = held
        return held

    def _register(self, *parts: str) -> None:
        """Register some of its networks, by the names of their attributes, as ``pyro.module`` does."""
        for part in parts:
            register(f"{self.name}.{part}", getattr(self, part))

    def _checked(self, x: Tensor) -> Tensor:
        """``x``, of shape ``(..., *data_shape)``, or a sentence."""
        if x.shape[-len(self.data_shape) :] != self.data_shape:
            raise ValueError(f"x: expected shape (..., {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}.")
        return x


def mean_image(p: TorchDistributionMixin) -> Tensor:
    """The mean of p(x|z), from the base distribution where the wrapper has none; shape ``(..., *data_shape)``."""
    return p.mean if hasattr(p, "mean") else p.base_dist.mean


def part(kind: str, given: str | nn.Module, table: dict[str, Any], argument: Any) -> Any:
    """A likelihood, prior or posterior: by its name in a table, made from one argument, or the module that is given.

    Raises:
        ValueError: If the name is unknown, or it is neither.
    """
    named_or_module(kind, given)
    return lookup(kind, given, table)(argument) if isinstance(given, str) else given


def named_or_module(kind: str, given: Any) -> None:
    """Refuse what is neither a name nor a module.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(given, str | nn.Module):
        raise ValueError(f"{kind}: expected a name or a module, got {given!r}; give one of these.")


def network(
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
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
