r"""Latents of one datum as one unconstrained vector.

.. math:: z = T(u)

T is the bijection from the real numbers to the support of each site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import Distribution, biject_to

from pyro_vae.inference.program.checks import how_to_mark
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import Site, base_name


@dataclass(frozen=True)
class LatentBlock:
    """Part of a datum's vector that belongs to one latent site.

    Attributes:
        name: Name of the site.
        alone: Batch shape of the site in a program without chains.
        event: Event shape of the site's value.
        free: Event shape of the unconstrained value.
        dtype: Dtype of the value.
        data_plate: The data plate.
    """

    name: str
    alone: Size
    event: Size
    free: Size
    dtype: torch.dtype
    data_plate: DataPlate

    @classmethod
    def of(cls, name: str, site: Site, free: Tensor, data_plate: DataPlate) -> LatentBlock:
        """Make the block of one latent site.

        The program was traced without chains.

        Args:
            name: Name of the site.
            site: Node of the site in the trace.
            free: Unconstrained value of the site.
            data_plate: The data plate.

        Raises:
            ValueError: If the site is not continuous.
        """
        fn = site["fn"]
        check_continuous(name, fn)
        return cls(name, fn.batch_shape, fn.event_shape, free.shape[len(fn.batch_shape) :], free.dtype, data_plate)

    @property
    def batch(self) -> Size:
        """Batch shape with leading ones for unused plate dimensions."""
        return Size((1,) * (self.data_plate.nesting - len(self.alone)) + tuple(self.alone))

    @property
    def size(self) -> int:
        """Length of the block: unconstrained numbers for one datum."""
        return self.batch.numel() * self.free.numel() // self.data_plate.size

    @property
    def _data_axis(self) -> int:
        """Axis of the data, counted with a first axis for chains."""
        return 1 + self.data_plate.nesting + self.data_plate.dim

    def flatten(self, free: Tensor) -> Tensor:
        """Reshape unconstrained values to vectors.

        From shape ``(C, *batch, *free)`` to shape ``(C, B, size)``.
        """
        return free.movedim(self._data_axis, 1).reshape(len(free), self.data_plate.size, self.size)

    def unflatten(self, u: Tensor) -> Tensor:
        """Reshape vectors to unconstrained values; inverse of :meth:`flatten`."""
        inner = list(self.batch)
        del inner[self.data_plate.dim]
        shaped = u.to(self.dtype).reshape(len(u), self.data_plate.size, *inner, *self.free)
        return shaped.movedim(1, self._data_axis)


@dataclass(frozen=True)
class LatentVector:
    """Layout of a datum's vector: one block for each latent site.

    Attributes:
        blocks: One block for each latent site.
    """

    blocks: tuple[LatentBlock, ...]

    @property
    def size(self) -> int:
        """Length U of the vector."""
        return sum(block.size for block in self.blocks)

    def join(self, free: Mapping[str, Tensor], num_chains: int) -> Tensor:
        """Join the sites' unconstrained values to vectors.

        Args:
            free: Unconstrained value of each site, shape ``(*batch, *free)``, with a leading dimension for several chains.
            num_chains: Number of chains, C.

        Returns:
            Vectors, shape ``(C, B, U)``.
        """
        shaped = [(b, free[b.name].reshape(num_chains, *b.batch, *b.free)) for b in self.blocks]
        return torch.cat([block.flatten(value) for block, value in shaped], -1)

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Split vectors into the sites' unconstrained values.

        Args:
            u: Vectors, shape ``(C, B, U)``.

        Returns:
            Unconstrained value of each site, shape ``(C, *batch, *free)``.
        """
        pieces = zip(self.blocks, u.split([block.size for block in self.blocks], -1), strict=True)
        return {block.name: block.unflatten(piece) for block, piece in pieces}

    def stack(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Check the values of latent sites and add a dimension of chains.

        Args:
            values: z of each site, by the name of the site, in the shape that the model draws, with or without a leading
                dimension of chains.

        Returns:
            z of each site, shape ``(C, *batch, *event)``; C is 1 if the values have no dimension of chains.

        Raises:
            ValueError: If a site is missing, a value has the wrong shape, or the numbers of chains differ.
        """
        stacked = {}
        for block in self.blocks:
            if block.name not in values:
                raise ValueError(f"posterior_draws: expected draws of latent site {block.name!r}, got none.")
            value, shape = values[block.name], tuple(block.alone + block.event)
            if tuple(value.shape) not in (shape, (len(value), *shape)):
                raise ValueError(
                    f"posterior_draws: expected {block.name!r} of shape {shape}, or with a leading dimension of chains, got "
                    f"{tuple(value.shape)}."
                )
            stacked[block.name] = value.to(block.dtype).reshape(-1, *block.batch, *block.event)
        if len({len(value) for value in stacked.values()}) > 1:
            raise ValueError(
                "posterior_draws: expected the same number of chains at every site, got different numbers; draw all sites "
                "together."
            )
        return stacked

    def chains(self, values: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield the values of each chain in turn.

        The yielded values have the shapes that they have in a program without chains.

        Args:
            values: A value of each site, shape ``(C, *batch, *event)`` or ``(C, *batch, *free)``.
        """
        alone = {
            block.name: value.reshape(-1, *block.alone, *value.shape[1 + len(block.batch) :])
            for block in self.blocks
            for value in [values[block.name]]
        }
        for chain in zip(*alone.values(), strict=True):
            yield dict(zip(alone, chain, strict=True))


def check_continuous(name: str, distribution: Distribution) -> None:
    """Refuse a latent site whose distribution has no density.

    Raises:
        ValueError: If the distribution is discrete or a Delta.
    """
    support = distribution.support
    if base_name(distribution) == "Delta" or (support is not None and support.is_discrete):
        raise ValueError(
            f"latent site {name!r}: expected a continuous distribution, got {base_name(distribution)}; use "
            f"importance_sampling, or {how_to_mark(name)} to sum over the site."
        )


class FromUnconstrained(Messenger):
    """Messenger that sets latent sites to z = T(u).

    Args:
        latents: Unconstrained value u of each site, shape ``(*batch, *free)``.

    Attributes:
        values: z of each site, by the name of the site.
        jacobians: log|T'(u)| of each site, by the name of the site, in the batch shape of the site.
    """

    def __init__(self, latents: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents
        self.values: dict[str, Tensor] = {}
        self.jacobians: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if (name := msg["name"]) not in self.latents:
            return
        u, transform = self.latents[name], biject_to(msg["fn"].support)
        msg["value"] = self.values[name] = transform(u)
        msg["done"] = True
        batch = msg["value"].dim() - msg["fn"].event_dim  # fn has more axes if other sites are enumerated
        if msg["value"].dim() - transform.codomain.event_dim > u.dim() - transform.domain.event_dim:
            raise ValueError(
                f"latent site {name!r}: expected the same support for all values of enumerated sites, got one that depends on "
                "the value; remove the enumeration marks and use importance_sampling."
            )
        jacobian = transform.log_abs_det_jacobian(u, msg["value"])
        self.jacobians[name] = sum_rightmost(jacobian, jacobian.dim() - batch)


class ToUnconstrained(Messenger):
    """Messenger that sets latent sites to z and records u = T^-1(z).

    Args:
        values: z of each site.

    Attributes:
        free: Unconstrained value u of each site, shape ``(*batch, *free)``.
        sites: Node of each site in the trace.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.free: dict[str, Tensor] = {}
        self.sites: dict[str, Site] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if (name := msg["name"]) in self.values and not msg["is_observed"]:
            check_continuous(name, msg["fn"])
            msg["value"], msg["done"] = self.values[name], True
            self.free[name] = biject_to(msg["fn"].support).inv(self.values[name])
            self.sites[name] = msg.copy()
