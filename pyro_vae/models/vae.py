"""The variational autoencoder: a Pyro model with an amortized guide."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.errors import check_count
from pyro_vae.models.base import LatentModel, mean_image


class VAE(LatentModel):
    r"""Variational autoencoder: :math:`p(z)\, p_\theta(x|z)` with the guide :math:`q_\phi(z|x)`.

    ``model`` and ``guide`` are Pyro stochastic functions with the plate ``"data"`` and the sites ``"z"`` and ``"x"``. Both
    functions register their networks by ``pyro.module``, under names that are unique to this instance.

    Args:
        data_shape: Shape of one datum, such as ``(1, 28, 28)``.
        latent_dim: Size Z of the latent vector.
        hidden: Widths of the encoder's hidden layers; the decoder has the same widths in reverse order. Empty: linear maps.
        activation: Name of the activation, see ``networks.ACTIVATIONS``.
        likelihood: Name from ``distributions.LIKELIHOODS``, or a module with the methods of :class:`Likelihood`.
        posterior: Name from ``distributions.POSTERIORS``, or a module with the methods of :class:`Posterior`.
        prior: Name from ``distributions.PRIORS``, or a module with the methods of :class:`Prior`.
        network: Kind of the model's networks: a name from ``networks.NETWORKS``, or a callable with the arguments of
            ``networks.MLP`` that makes a network.
        encoder: Module from data, shape ``(..., *data_shape)``, to the parameters of q(z|x), shape ``(..., num_params)``; or
            a callable that makes the module.
        decoder: Module from latent vectors, shape ``(..., Z)``, to the parameters of p(x|z), shape ``(..., *data_shape)``; or
            a callable that makes the module.

    Raises:
        ValueError: If a size is below 1, a name is unknown, or a network has the wrong input or output shape.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014.
    """

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
        """The guide: the amortized posterior q(z|x).

        Args:
            x: Data, shape ``(B, *data_shape)``.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z|x), with event shape ``(Z,)``, for ``x`` of shape ``(..., *data_shape)``."""
        return self.posterior(self.encoder(self._checked(x)))

    def decode(self, z: Tensor) -> TorchDistributionMixin:
        """Return p(x|z), with event shape ``data_shape``, for ``z`` of shape ``(..., Z)``."""
        return self.likelihood(self.decoder(z))

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draw data from the model: z ~ p(z), then x ~ p(x|z).

        Args:
            num_samples: The number of draws.

        Returns:
            The draws of x, shape ``(num_samples, *data_shape)``.

        Raises:
            ValueError: If ``num_samples`` is below 1.
        """
        check_count("num_samples", num_samples)
        return self.decode(self.prior().sample((num_samples,))).sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of p(x|z) at one draw z ~ q(z|x).

        Args:
            x: Data, shape ``(B, *data_shape)``.

        Returns:
            The mean images, shape ``(B, *data_shape)``.
        """
        return mean_image(self.decode(self.encode(x).sample()))
