"""The networks that every rival trains, and minus their ELBO in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def perceptron(*widths: int) -> nn.Sequential:
    """Linear maps with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def draw(params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A draw of the normal with parameters (loc, log scale); the draw, loc, log scale and the noise."""
    loc, log_scale = params.chunk(2, -1)
    noise = torch.randn_like(loc)
    return loc + log_scale.exp() * noise, loc, log_scale, noise


def standard_kl(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL from N(loc, scale^2) to N(0, 1), summed."""
    return 0.5 * (loc.square() + (2 * log_scale).exp() - 1).sum() - log_scale.sum()


class OneLayer(nn.Module):
    """A VAE with one latent vector z; the encoder gives (loc, log scale), the decoder logits.

    Args:
        data_shape: Shape of one image as the encoder takes it.
        latent_dim: Z.
        encoder: ``(B, *data_shape)`` to ``(B, 2 Z)``.
        decoder: ``(B, Z)`` to ``(B, *data_shape)``.
    """

    def __init__(self, data_shape: tuple[int, ...], latent_dim: int, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.data_shape, self.latent_dim = data_shape, latent_dim
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Minus the ELBO summed over the batch, nats, with the KL in closed form."""
        z, loc, log_scale, _ = draw(self.encoder(x))
        logits = self.decoder(z)
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + standard_kl(loc, log_scale)


class TwoLayers(nn.Module):
    r"""Two stochastic layers: :math:`p(z_2)\, p(z_1|z_2)\, p(x|z_1)` with :math:`q(z_1|x)\, q(z_2|z_1)`.

    Args:
        hidden: Widths of the hidden layers, below and above z1.
        latent_dims: Z of the lower and the upper latent vector.
    """

    def __init__(self, hidden: tuple[int, int] = (400, 200), latent_dims: tuple[int, int] = (50, 20)) -> None:
        super().__init__()
        (h1, h2), (z1, z2) = hidden, latent_dims
        self.data_shape, self.latent_dims = (784,), latent_dims
        self.encoder = perceptron(784, h1, 2 * z1)
        self.upper_encoder = perceptron(z1, h2, 2 * z2)
        self.upper_decoder = perceptron(z2, h2, 2 * z1)
        self.decoder = perceptron(z1, h1, 784)

    def forward(self, x: Tensor) -> Tensor:
        """Minus the ELBO summed over the batch, nats; the upper KL in closed form, the lower one sampled."""
        z1, _, log_scale1, noise1 = draw(self.encoder(x))
        z2, loc2, log_scale2, _ = draw(self.upper_encoder(z1))
        prior_loc, prior_log_scale = self.upper_decoder(z2).chunk(2, -1)
        standardized = (z1 - prior_loc) * (-prior_log_scale).exp()
        lower = 0.5 * (standardized.square() - noise1.square()).sum() + (prior_log_scale - log_scale1).sum()
        distortion = F.binary_cross_entropy_with_logits(self.decoder(z1), x, reduction="sum")
        return distortion + lower + standard_kl(loc2, log_scale2)


def mlp(width: int = 400, latent_dim: int = 50) -> OneLayer:
    """784-400-50-400-784, ReLU."""
    return OneLayer((784,), latent_dim, perceptron(784, width, 2 * latent_dim), perceptron(latent_dim, width, 784))


def conv(latent_dim: int = 20) -> OneLayer:
    """Two convolutions of stride 2 with 32 and 64 channels, and their mirror image, ReLU."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 2 * latent_dim),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, 64 * 7 * 7),
        nn.ReLU(),
        nn.Unflatten(-1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
    )
    return OneLayer((1, 28, 28), latent_dim, encoder, decoder)


NETWORKS: dict[str, Callable[..., Any]] = {"mlp": mlp, "conv": conv, "two-layer": TwoLayers}
TITLES = {
    "mlp": "MLP 784-400-50-400-784",
    "conv": "convolutions, 32 and 64 channels, Z = 20",
    "two-layer": "two stochastic layers, 784-400-50-200-20",
}
