"""The variational autoencoder, a Pyro model and its amortized guide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions import LIKELIHOODS, POSTERIORS, PRIORS
from pyro_vae.errors import check_count
from pyro_vae.models.base import Model, make_part, mean_image
from pyro_vae.networks.build import Network, make_network


class VAE(Model):
    r"""Variational autoencoder: :math:`p(z)\, p_\theta(x|z)` with the guide :math:`q_\phi(z|x)`.

    ``model`` and ``guide`` are Pyro stochastic functions with plate ``"data"`` and sites ``"z"`` and ``"x"``. They
    register their networks by ``pyro.module``, under names that belong to this instance alone.

    Args:
        data_shape: Shape of one datum, such as ``(1, 28, 28)``.
        latent_dim: Z, the size of the latent vector.
        hidden: Widths of the hidden layers of the encoder; the decoder has them in reverse. Empty: a linear map.
        activation: Name of the activation, see ``networks.ACTIVATIONS``.
        likelihood: Name from ``distributions.LIKELIHOODS``, or a module from the decoder's output to p(x|z).
        posterior: Name from ``distributions.POSTERIORS``, or a module with ``num_params`` from the encoder's output,
            shape ``(..., num_params)``, to q(z|x).
        prior: Name from ``distributions.PRIORS``, or a module without input that gives p(z), event shape ``(Z,)``.
        encoder: Module from ``(..., *data_shape)`` to ``(..., num_params)``, in place of the perceptron, or what makes one,
            see ``models.base.Network``.
        decoder: Module from ``(..., Z)`` to ``(..., *data_shape)``, likewise.

    Raises:
        ValueError: If a size is below 1 or a name is unknown.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014.
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
    ) -> None:
        super().__init__(data_shape, latent_dim)
        self.likelihood = make_part("likelihood", likelihood, LIKELIHOODS, self.data_shape)
        self.posterior = make_part("posterior", posterior, POSTERIORS, latent_dim)
        self.prior = make_part("prior", prior, PRIORS, latent_dim)
        num_params = (self.posterior.num_params,)
        self.encoder = make_network(encoder, self.data_shape, num_params, hidden, activation)
        self.decoder = make_network(decoder, (latent_dim,), self.data_shape, hidden[::-1], activation)

    def model(self, x: Tensor) -> Tensor:
        """The generative model p(z) p(x|z).

        Args:
            x: Data, shape ``(B, *data_shape)``.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("prior", "decoder", "likelihood")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)
        return z

    def guide(self, x: Tensor) -> Tensor:
        """The amortized posterior q(z|x).

        Args:
            x: Data, shape ``(B, *data_shape)``.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """q(z|x): data of shape ``(..., *data_shape)`` to a distribution with event shape ``(Z,)``."""
        return self.posterior(self.encoder(self._checked(x)))

    def decode(self, z: Tensor) -> TorchDistributionMixin:
        """p(x|z): latent vectors of shape ``(..., Z)`` to a distribution with event shape ``data_shape``."""
        return self.likelihood(self.decoder(z))

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draws from the model, x ~ p(x|z) with z ~ p(z).

        Args:
            num_samples: How many.

        Returns:
            Shape ``(num_samples, *data_shape)``.

        Raises:
            ValueError: If ``num_samples`` is below 1.
        """
        check_count("num_samples", num_samples)
        return self.decode(self.prior().sample((num_samples,))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean image E[x'|z] at one draw z ~ q(z|x).

        Args:
            x: Data, shape ``(B, *data_shape)``.

        Returns:
            Shape ``(B, *data_shape)``.
        """
        return mean_image(self.decode(self.encode(x).sample()))

    @torch.no_grad()
    def center_output(self, mean: Tensor, scale: float | None = None) -> None:
        """Set the decoder's output bias so that p(x|z) starts at the data's mean, and with their scale.

        The decoder's optimum without latent information, from which training need not first learn the background.

        Args:
            mean: Mean of the training data, shape ``data_shape``.
            scale: Standard deviation of the training data about this mean, over all pixels; only a likelihood with a scale
                of its own, such as ``"normal"``, uses it. None: leave that as it is.

        Raises:
            ValueError: If the shape is another one, or the decoder has no ``head`` with a bias of that size.
        """
        if tuple(mean.shape) != self.data_shape:
            raise ValueError(f"mean: expected shape {self.data_shape}, got {tuple(mean.shape)}.")
        head: Any = getattr(self.decoder, "head", None)
        if getattr(head, "bias", None) is None or head.bias.numel() != mean.numel():
            raise ValueError(
                "center_output: expected a decoder with a linear `head` that has one bias a pixel, got none."
            )
        head.bias.copy_(self.likelihood.bias(mean).reshape(-1))
        if scale is not None:
            self.likelihood.start_at(scale)
