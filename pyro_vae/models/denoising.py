"""Noise in, clean out: a VAE whose encoder sees the data through noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import check_count
from pyro_vae.lookup import parse_numbers, parse_spec
from pyro_vae.models.base import check_name_or_module, mean_image
from pyro_vae.models.vae import VAE
from pyro_vae.networks.build import Network


def gaussian(x: Tensor, level: float) -> Tensor:
    r"""Gaussian noise: :math:`\tilde x = x + \sigma \epsilon`, with :math:`\epsilon \sim N(0, I)` and sigma the level."""
    return x + level * torch.randn_like(x)


def masking(x: Tensor, level: float) -> Tensor:
    """Masking noise: each number is 0 with the probability of the level."""
    return torch.where(torch.rand_like(x) < level, 0.0, x)


def salt_and_pepper(x: Tensor, level: float) -> Tensor:
    """Salt and pepper: each number is 0 with half the probability of the level, and 1 with the other half."""
    u = torch.rand_like(x)
    return torch.where(u < level / 2, 0.0, torch.where(u < level, 1.0, x))


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": gaussian,
    "masking": masking,
    "salt-and-pepper": salt_and_pepper,
}


class Noise(nn.Module):
    r"""The noise :math:`p(\tilde x | x)` by a name from ``NOISES`` and its level; new at every call.

    Args:
        words: ``"NAME:LEVEL"``, such as ``"gaussian:0.5"``, ``"masking:0.3"`` or ``"salt-and-pepper:0.2"``.

    Raises:
        ValueError: If the name is unknown, or the level is no number, negative, or, as a probability, above 1.
    """

    def __init__(self, words: str) -> None:
        super().__init__()
        self.kind, args = parse_spec("noise", words, NOISES)
        self.words, name = words, words.partition(":")[0]
        (self.level,) = parse_numbers("noise", words, args, [float], form=f"{name}:LEVEL", example=f"{name}:0.3")
        highest = float("inf") if name == "gaussian" else 1.0
        if not 0 <= self.level <= highest or self.level == float("inf"):
            kind = "a standard deviation of at least 0" if name == "gaussian" else "a probability from 0 to 1"
            raise ValueError(f"noise: expected {name} with {kind}, got {words!r}; write {name}:0.3, say.")

    def forward(self, x: Tensor) -> Tensor:
        """Data of any shape to noisy ones of the same."""
        return self.kind(x, self.level)

    def extra_repr(self) -> str:
        return self.words


class DenoisingVAE(VAE):
    r"""A VAE whose encoder sees noise on the data in training, and whose likelihood is of the clean data.

    .. math:: \mathcal L(x) = E_{p(\tilde x|x)} E_{q(z|\tilde x)}[\log p(x, z) - \log q(z|\tilde x)] \le \log p(x)

    The noise enters the encoder alone, so that this is a bound on the clean data: that of one proposal, averaged over
    proposals. In ``eval()`` mode nothing is added, as with dropout: the guide is q(z|x), of what it is given, and
    :func:`denoise` takes data that are noisy already. Objectives that run the guide twice for one draw (``stl``, ``dreg``)
    refuse it.

    Args:
        data_shape: Shape of one datum.
        latent_dim: Z.
        hidden: See :class:`VAE`.
        activation: Likewise.
        likelihood: Likewise.
        posterior: Likewise.
        prior: Likewise.
        encoder: Likewise.
        decoder: Likewise.
        noise: The noise of training, see :class:`Noise`; or a module from data to noisy data of the same shape.

    Raises:
        ValueError: If a size or a level is out of range, or a name is unknown.

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
        likelihood: str | nn.Module = "bernoulli",
        posterior: str | nn.Module = "normal",
        prior: str | nn.Module = "normal",
        encoder: Network = None,
        decoder: Network = None,
        noise: str | nn.Module = "gaussian:0.5",
    ) -> None:
        parts: dict[str, Any] = {"likelihood": likelihood, "posterior": posterior, "prior": prior}
        super().__init__(data_shape, latent_dim, hidden, activation, encoder=encoder, decoder=decoder, **parts)
        check_name_or_module("noise", noise)
        self.noise = Noise(noise) if isinstance(noise, str) else noise
        self.encoder = _ThroughNoise(self.noise, self.encoder)

    def corrupt(self, x: Tensor) -> Tensor:
        """Noisy data, as the encoder sees them in training; of the shape of ``x``."""
        return self.noise(x)


class _ThroughNoise(nn.Module):
    """A network that sees its input through noise while it is in training."""

    def __init__(self, noise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.noise, self.network = noise, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.noise(x) if self.training else x)


@torch.no_grad()
def denoise(vae: Any, x: Tensor, num_samples: int = 16) -> Tensor:
    r"""The clean data to expect of noisy ones: :math:`\frac1S \sum_s E[x|z_s]` with draws z of q(z|x), x as it is.

    Args:
        vae: A :class:`DenoisingVAE`, or any model with ``encode`` and ``decode``; put into ``eval()`` mode meanwhile.
        x: Noisy data, shape ``(B, *data_shape)``.
        num_samples: S.

    Returns:
        Shape ``(B, *data_shape)``.

    Raises:
        ValueError: If ``num_samples`` is below 1.
    """
    check_count("num_samples", num_samples)
    was_training = vae.training
    vae.eval()
    try:
        q = vae.encode(x)
        # One draw after another: a decoder's work on all of them at once falls out of the cache, and of small memories.
        total = mean_image(vae.decode(q.sample()))
        for _ in range(num_samples - 1):
            total = total + mean_image(vae.decode(q.sample()))
    finally:
        vae.train(was_training)
    return total / num_samples
