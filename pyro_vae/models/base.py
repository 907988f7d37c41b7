"""What the models of the package have in common: a name of their own, and the columns of the data that they take."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.errors import check_count
from pyro_vae.lookup import lookup
from pyro_vae.registration import register

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
        check_count("latent_dim", latent_dim)
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


def make_part(kind: str, given: str | nn.Module, table: dict[str, Any], argument: Any) -> Any:
    """A likelihood, prior or posterior: by its name in a table, made from one argument, or the module that is given.

    Raises:
        ValueError: If the name is unknown, or it is neither.
    """
    check_name_or_module(kind, given)
    return lookup(kind, given, table)(argument) if isinstance(given, str) else given


def check_name_or_module(kind: str, given: Any) -> None:
    """Refuse what is neither a name nor a module.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(given, str | nn.Module):
        raise ValueError(f"{kind}: expected a name or a module, got {given!r}; give one of these.")
