r"""The latents of one datum as one unconstrained vector, :math:`z = T(u)`, with T the bijection of each site's support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import biject_to

from pyro_vae.inference.program.checks import how_to_mark
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import Site, base_name


@dataclass(frozen=True)
class Part:
    """One latent site's place in the vector of a datum.

    Attributes:
        name: The site.
        alone: Its batch shape outside any plate of chains.
        event: Event shape of its value.
        free: Event shape of its unconstrained value.
        dtype: Of its value.
        data_plate: Where the data are.
    """

    name: str
    alone: Size
    event: Size
    free: Size
    dtype: torch.dtype
    data_plate: DataPlate

    @property
    def batch(self) -> Size:
        """Its batch shape with as many dimensions as the program's plates use."""
        return Size((1,) * (self.data_plate.nesting - len(self.alone)) + tuple(self.alone))

    @property
    def size(self) -> int:
        """How many unconstrained numbers one datum has here."""
        return self.batch.numel() * self.free.numel() // self.data_plate.size

    @property
    def _axis(self) -> int:
        """The data's dimension, behind that of the chains."""
        return 1 + self.data_plate.nesting + self.data_plate.dim

    def flatten(self, u: Tensor) -> Tensor:
        """Shape ``(C, *batch, *free)`` to ``(C, B, size)``."""
        return u.movedim(self._axis, 1).reshape(len(u), self.data_plate.size, self.size)

    def unflatten(self, u: Tensor) -> Tensor:
        """The inverse of :meth:`flatten`."""
        inner = list(self.batch)
        del inner[self.data_plate.dim]
        return u.to(self.dtype).reshape(len(u), self.data_plate.size, *inner, *self.free).movedim(1, self._axis)


def part_of(name: str, site: Site, free: Tensor, data_plate: DataPlate) -> Part:
    """The place of a latent site of a trace without chains, whose unconstrained value is ``free``.

    Raises:
        ValueError: If the site is not continuous.
    """
    fn = site["fn"]
    check_continuous(name, fn)
    return Part(name, fn.batch_shape, fn.event_shape, free.shape[len(fn.batch_shape) :], free.dtype, data_plate)


def check_continuous(name: str, distribution: Any) -> None:
    """Refuse a latent site without a density over real numbers.

    Raises:
        ValueError: If it is discrete or a Delta.
    """
    if base_name(distribution) == "Delta" or distribution.support.is_discrete:
        raise ValueError(
            f"latent site {name!r}: expected a continuous distribution, along whose gradient chains can move, got "
            f"{base_name(distribution)}; use importance_sampling, or {how_to_mark(name)} to sum over it."
        )


class Place(Messenger):
    """Puts unconstrained values into the latent sites.

    Args:
        latents: u of each site, in the shape of the site's batch and its free event.

    Attributes:
        values: z = T(u) of each site.
        jacobians: log|T'(u)| of each site, in the shape of its batch.
    """

    def __init__(self, latents: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents
        self.values: dict[str, Tensor] = {}
        self.jacobians: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) not in self.latents:
            return
        u, transform = self.latents[name], biject_to(msg["fn"].support)
        msg["value"] = self.values[name] = transform(u)
        msg["done"] = True
        batch = msg["value"].dim() - msg["fn"].event_dim  # fn has axes besides where others are enumerated
        if msg["value"].dim() - transform.codomain.event_dim > u.dim() - transform.domain.event_dim:
            raise ValueError(
                f"latent site {name!r}: expected a support that is the same for all values of the sites that are summed over, "
                "got one that depends on them; take their marks for enumeration off, and use importance_sampling."
            )
        jacobian = transform.log_abs_det_jacobian(u, msg["value"])
        self.jacobians[name] = sum_rightmost(jacobian, jacobian.dim() - batch)


class Unconstrain(Messenger):
    """Puts values into the latent sites and notes u = T^-1(z) of each.

    Args:
        values: z of each site.

    Attributes:
        free: u of each site, in the shape of the site's batch and its free event.
        sites: What else is known of each site.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.free: dict[str, Tensor] = {}
        self.sites: dict[str, Site] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) in self.values and not msg["is_observed"]:
            check_continuous(name, msg["fn"])
            msg["value"], msg["done"] = self.values[name], True
            self.free[name] = biject_to(msg["fn"].support).inv(self.values[name])
            self.sites[name] = dict(msg)
