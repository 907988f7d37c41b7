r"""Draws as functions of given standard normal noise.

.. math:: z = f(\epsilon; x), \quad \epsilon \sim N(0, I)

A draw from a distribution made of normals is a function of standard normal numbers. If these come from outside, a draw
depends on its datum and its number alone, not on the other draws of the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.multivariate_normal import _batch_mv

from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import Site


class Noise(Protocol):
    """Source of standard normal numbers for each draw and datum."""

    def __call__(self, name: str, start: int, num: int, like: NoiseShape, /) -> Tensor:
        """The numbers of one site.

        Args:
            name: The site.
            start: Number of the first draw.
            num: K, the number of draws.
            like: Number, dtype and device of the numbers of a draw.

        Returns:
            Shape ``(K, B, like.width)``.
        """


class NoiseShape(NamedTuple):
    """Noise that a site takes for one draw of one datum.

    Attributes:
        width: Number of standard normal numbers.
        dtype: Their dtype.
        device: Their device.
    """

    width: int
    dtype: torch.dtype
    device: torch.device


#: Distributions made of normals, as long as a subclass has no draws of its own.
_NORMALS = (Normal, MultivariateNormal, LowRankMultivariateNormal)


def noise_like(distribution: TorchDistributionMixin) -> Tensor | None:
    """An empty tensor with the shape of one draw's noise.

    Args:
        distribution: Batch shape ``(...)``.

    Returns:
        Shape ``(..., n)`` or longer, starting with the batch shape; None if the distribution is not made of normals.
    """
    if isinstance(distribution, Independent | MaskedDistribution):
        return noise_like(distribution.base_dist)
    if isinstance(distribution, Delta):
        return distribution.v.new_empty((*distribution.batch_shape, 0))
    if isinstance(distribution, TransformedDistribution):
        return noise_like(distribution.base_dist) if _draws_as(distribution, TransformedDistribution) else None
    if not any(isinstance(distribution, kind) and _draws_as(distribution, kind) for kind in _NORMALS):
        return None
    shape: tuple[int, ...] = distribution.batch_shape + distribution.event_shape
    if isinstance(distribution, LowRankMultivariateNormal):
        shape = (*distribution.batch_shape, distribution.cov_factor.shape[-1] + distribution.event_shape[0])
    return distribution.loc.new_empty(()).expand(shape)


def _draws_as(distribution: Distribution, kind: type[Distribution]) -> bool:
    ours = type(distribution)
    return ours.rsample is kind.rsample and ours.sample is kind.sample


def from_noise(distribution: TorchDistributionMixin, noise: Tensor) -> Tensor:
    r"""A draw as a function of standard normal numbers, as in ``rsample``.

    .. math:: z = \mu + L \epsilon

    and its transforms.

    Args:
        distribution: Normal, MultivariateNormal, LowRankMultivariateNormal or Delta; Independent, masked or transformed.
        noise: Shape of ``noise_like(distribution)``, with sample dimensions before it if there are any.

    Returns:
        Shape ``(sample..., batch..., event...)``.

    Raises:
        TypeError: If the distribution is not made of normals.
    """
    if noise_like(distribution) is None:
        raise TypeError(f"distribution: expected one made of normals, got {type(distribution).__name__}; draw from it.")
    if isinstance(distribution, Independent | MaskedDistribution):
        return from_noise(distribution.base_dist, noise)
    if isinstance(distribution, Delta):
        return distribution.v.expand(noise.shape[:-1] + distribution.event_shape)
    if isinstance(distribution, TransformedDistribution):
        value = from_noise(distribution.base_dist, noise)
        for transform in distribution.transforms:
            value = transform(value)
        return value
    if isinstance(distribution, Normal):
        return distribution.loc + distribution.scale * noise
    if isinstance(distribution, MultivariateNormal):
        return distribution.loc + _batch_mv(distribution._unbroadcasted_scale_tril, noise)
    factor = distribution._unbroadcasted_cov_factor
    common, own = noise.split([factor.shape[-1], distribution.event_shape[0]], -1)
    return distribution.loc + _batch_mv(factor, common) + distribution._unbroadcasted_cov_diag.sqrt() * own


class SiteNoise:
    """Draws of a guide's sites from given noise.

    Args:
        noise: Source of the numbers.
        data_plate: The plate of the data.
        start: Number of the first draw.
        num: K.

    Attributes:
        shapes: Noise that the sites have taken, by name.
    """

    def __init__(self, noise: Noise, data_plate: DataPlate, start: int, num: int) -> None:
        self.noise, self.data_plate, self.start, self.num = noise, data_plate, start, num
        self.shapes: dict[str, NoiseShape] = {}

    def __call__(self, name: str, distribution: Distribution, particles: bool) -> Tensor | None:
        """The draws of one site, or None if it is not normal.

        Args:
            name: The site.
            distribution: Its batch has the data plate's dimension, at least.
            particles: Its batch has the particle axis already; else the axis is put before the batch.
        """
        empty = noise_like(distribution)
        batch = len(distribution.batch_shape)
        nesting, dim = self.data_plate.nesting, self.data_plate.dim
        if empty is None or batch < -dim or empty.shape[batch + dim] != self.data_plate.size:
            return None
        shape = list(empty.shape)
        lead = shape[: max(0, batch - nesting)]  # the particle axis, if it is there
        if lead not in ([], [self.num]) or (particles and self.num > 1 and not lead):
            return None
        inner = [1] * (nesting - batch) + shape[len(lead) :]
        rest = inner[: nesting + dim] + inner[nesting + dim + 1 :]
        like = NoiseShape(torch.Size(rest).numel(), empty.dtype, empty.device)
        self.shapes[name] = like
        drawn = self.noise(name, self.start, self.num, like)
        drawn = drawn.reshape(self.num, self.data_plate.size, *rest).movedim(1, 1 + nesting + dim)
        return from_noise(distribution, drawn.reshape(shape) if particles else drawn)


class NoiseMessenger(Messenger):
    """Gives the latent sites of a guide their values from noise.

    Sites not made of normals draw as usual.

    Args:
        draw: A :class:`SiteNoise`, or a function of a name, a distribution and a flag for its particle axis.
    """

    def __init__(self, draw: Callable[[str, Distribution, bool], Tensor | None]) -> None:
        super().__init__()
        self.draw = draw

    def _pyro_sample(self, msg: Site) -> None:
        if msg["done"] or msg["is_observed"] or msg["infer"].get("_deterministic", False):
            return
        if not isinstance(msg["fn"], Distribution) or msg["args"] or msg["kwargs"]:
            return
        value = self.draw(msg["name"], msg["fn"], True)
        if value is not None:
            msg["value"], msg["done"] = value, True
