"""The denoising VAE, trained to encode noisy data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from pyro_vae.errors import check_count
from pyro_vae.lookup import parse_numbers, parse_spec
from pyro_vae.models.base import ModelOptions, check_name_or_module, mean_image
from pyro_vae.models.protocol import Autoencodes
from pyro_vae.models.vae import VAE


def gaussian(x: Tensor, level: float) -> Tensor:
    r"""Add Gaussian noise with standard deviation ``level``."""
    return x + level * torch.randn_like(x)


def masking(x: Tensor, level: float) -> Tensor:
    """Set each number to 0 with probability ``level``."""
    return torch.where(torch.rand_like(x) < level, 0.0, x)


def salt_and_pepper(x: Tensor, level: float) -> Tensor:
    """Set each number to 0 or 1 with probability ``level``.

    A changed number becomes 0 or 1 with equal probability.
    """
    u = torch.rand_like(x)
    return torch.where(u < level / 2, 0.0, torch.where(u < level, 1.0, x))


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": gaussian,
    "masking": masking,
    "salt-and-pepper": salt_and_pepper,
}


class Noise(nn.Module):
    r"""Random noise :math:`p(\tilde x | x)`, drawn anew at every call.

    Args:
        spec: Name and level of the noise, ``"NAME:LEVEL"``, such as ``"gaussian:0.5"``, ``"masking:0.3"`` or
            ``"salt-and-pepper:0.2"``; the names are those of ``NOISES``.

    Raises:
        ValueError: If the name is unknown, the level is not a number or is negative, or a level that is a probability exceeds
            1.
    """

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.kind, args = parse_spec("noise", spec, NOISES)
        self.spec, name = spec, spec.partition(":")[0]
        (self.level,) = parse_numbers("noise", spec, args, [float], form=f"{name}:LEVEL", example=f"{name}:0.3")
        highest = float("inf") if name == "gaussian" else 1.0
        if not 0 <= self.level <= highest or self.level == float("inf"):
            kind = "a standard deviation of at least 0" if name == "gaussian" else "a probability from 0 to 1"
            raise ValueError(f"noise: expected {name} with {kind}, got {spec!r}; write, for example, {name}:0.3.")

    def forward(self, x: Tensor) -> Tensor:
        """Add noise to data of any shape."""
        return self.kind(x, self.level)

    def extra_repr(self) -> str:
        return self.spec


class DenoisingVAE(VAE):
    r"""A VAE trained to encode noisy data and decode clean data.

    .. math:: \mathcal L(x) = E_{p(\tilde x|x)} E_{q(z|\tilde x)}[\log p(x, z) - \log q(z|\tilde x)] \le \log p(x)

    Only the encoder sees the noise. Therefore L(x), an ELBO averaged over the noise in the guide, bounds log p(x) of the clean
    data. As with dropout, no noise is added in ``eval()`` mode: the guide is then q(z|x), and :func:`denoise` takes
    data that are already noisy. Objectives that run the guide twice for one draw (``stl``, ``dreg``) refuse this model.

    Args:
        data_shape: See :class:`VAE`.
        latent_dim: See :class:`VAE`.
        hidden: See :class:`VAE`.
        activation: See :class:`VAE`.
        noise: The training noise, see :class:`Noise`; or a module that maps data to noisy data of the same shape.
        **options: See :class:`VAE`.

    Raises:
        ValueError: If a size or the noise level is out of range, or a name is unknown.

    References:
        Im, Ahn, Memisevic, Bengio, "Denoising Criterion for Variational Auto-Encoding Framework", 2017, eq. 6; Vincent et
        al., "Stacked Denoising Autoencoders", 2010.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        noise: str | nn.Module = "gaussian:0.5",
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        check_name_or_module("noise", noise)
        self.noise = Noise(noise) if isinstance(noise, str) else noise
        self.encoder = _ThroughNoise(self.noise, self.encoder)

    def corrupt(self, x: Tensor) -> Tensor:
        """Add the training noise to data of any shape."""
        return self.noise(x)


class _ThroughNoise(nn.Module):
    """A network that adds noise to its input in train mode."""

    def __init__(self, noise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.noise, self.network = noise, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.noise(x) if self.training else x)


@torch.no_grad()
def denoise(vae: Autoencodes, x: Tensor, num_samples: int = 16) -> Tensor:
    r"""Denoise data: decode draws from q(z|x) and average the means.

    .. math:: \tfrac1S \textstyle\sum_s E[x|z_s], \quad z_s \sim q(z|x) \text{ at the noisy } x

    Args:
        vae: A :class:`DenoisingVAE`, or another model with ``encode`` and ``decode``. The call runs the model in ``eval()``
            mode.
        x: Noisy data, shape ``(B, *data_shape)``.
        num_samples: Number S of draws of z for each datum.

    Returns:
        The denoised data, shape ``(B, *data_shape)``.

    Raises:
        ValueError: If ``num_samples`` is below 1.
    """
    check_count("num_samples", num_samples)
    was_training = vae.training
    vae.eval()
    try:
        q = vae.encode(x)
        # One draw at a time: all draws at once would not fit the cache.
        total = mean_image(vae.decode(q.sample()))
        for _ in range(num_samples - 1):
            total = total + mean_image(vae.decode(q.sample()))
    finally:
        vae.train(was_training)
    return total / num_samples
