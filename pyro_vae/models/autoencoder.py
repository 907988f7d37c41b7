"""The plain autoencoder: a code and its reconstruction, without probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.data.stored import rows_of
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.errors import check_count
from pyro_vae.models.base import Model, make_part, mean_image, set_output_bias
from pyro_vae.networks.build import NetworkFactory, NetworkLike, NetworkMaker


class _Flat(dist.ImproperUniform):
    """An improper flat prior: its density is 1 everywhere."""

    def sample(self, *_args: object, **_kwargs: object) -> Tensor:
        # The package's trial runs ignore a TypeError.
        raise TypeError(
            "autoencoder: the model has no prior to draw from and no log p(x); use its squared_error, or train a VAE."
        )


class Autoencoder(Model):
    r"""The plain autoencoder: an encoder f and a decoder g without probabilities.

    .. math:: \min_{f, g} \|x - g(f(x))\|^2

    As a Pyro program it is a VAE with an improper flat prior, a point posterior and the unnormalized likelihood
    :math:`e^{-\|x - g(z)\|^2}`. The reported distortion is the squared error, and the reported rate is 0. The model has no
    log p(x), so its objective bounds nothing. A linear autoencoder spans the subspace of PCA, but its axes need not be
    orthogonal.

    The model has no density of codes. Therefore :meth:`sample` decodes draws from a normal distribution fitted to the codes
    of the training data (the ex-post density of Ghosh et al. 2020). The normal distribution has the mean m (buffer
    ``code_mean``) and the covariance S S' (buffer ``code_scale`` for S). Before training, m is 0 and S is I.

    Args:
        data_shape: Shape of one datum.
        latent_dim: Size Z of the code, at least 1; a code may be larger than a datum.
        hidden: Widths of the encoder's hidden layers; the decoder has the same widths in reverse order. Empty: linear maps.
        activation: Name of the activation, see ``networks.ACTIVATIONS``.
        likelihood: Name from ``distributions.LIKELIHOODS``; only the mean of the likelihood is used. ``"normal"`` is for real
            numbers, ``"bernoulli"`` for pixels in [0, 1].
        network: Kind of both networks, see :class:`VAE`.
        encoder: Module from data, shape ``(..., *data_shape)``, to codes, shape ``(..., Z)``; or a callable that makes the
            module.
        decoder: Module from codes, shape ``(..., Z)``, to data, shape ``(..., *data_shape)``; or a callable that makes the
            module.

    Raises:
        ValueError: If a size is below 1 or a name is unknown.

    References:
        Bourlard, Kamp, "Auto-Association by Multilayer Perceptrons and Singular Value Decomposition", 1988; Baldi, Hornik,
        "Neural Networks and Principal Component Analysis", 1989; Ghosh, Sajjadi, Vergari, Black, Schölkopf, "From
        Variational to Deterministic Autoencoders", 2020, section 4.
    """

    has_bound: ClassVar[bool] = False
    sampled: ClassVar[str] = "decoded draws of a normal distribution fitted to the codes; the model has no prior"
    code_mean: Tensor
    code_scale: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        likelihood: str | nn.Module = "normal",
        network: str | NetworkMaker = "mlp",
        encoder: NetworkLike = None,
        decoder: NetworkLike = None,
    ) -> None:
        super().__init__(data_shape, latent_dim)
        self.likelihood = make_part("likelihood", likelihood, LIKELIHOODS, self.data_shape).requires_grad_(False)
        self.make_network = NetworkFactory(network, activation)
        self.encoder = self.make_network(encoder, [self.data_shape], (latent_dim,), hidden)
        self.decoder = self.make_network(decoder, [(latent_dim,)], self.data_shape, hidden[::-1])
        self.register_buffer("code_mean", torch.zeros(latent_dim))
        self.register_buffer("code_scale", torch.eye(latent_dim))

    def model(self, x: Tensor) -> Tensor:
        r"""The model: a code with a flat prior, scored by squared error.

        Args:
            x: Data, shape ``(B, *data_shape)``.

        Returns:
            The codes, shape ``(B, Z)``.
        """
        self._register("decoder")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", _Flat(constraints.real_vector, (), (self.latent_dim,)))
            pyro.factor("x", -squared_error(self.decode(z).mean, x, len(self.data_shape)))
        return z

    def guide(self, x: Tensor) -> Tensor:
        """The guide: return the code f(x), a point mass, shape ``(B, Z)``."""
        self._register("encoder")
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """Return the code f(x) as a point mass with event shape ``(Z,)``."""
        return dist.Delta(self.encoder(self._checked(x))).to_event(1)

    def decode(self, z: Tensor) -> TorchDistributionMixin:
        """Return the datum g(z) as a point mass with event shape ``data_shape``."""
        return dist.Delta(mean_image(self.likelihood(self.decoder(z)))).to_event(len(self.data_shape))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the datum g(f(x)), with the shape of ``x``, ``(..., *data_shape)``."""
        return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def after_epoch(self, x: Tensor) -> None:
        """Fit a normal distribution to the codes, for :meth:`sample`.

        The function ``fit`` calls this hook after each epoch.

        Args:
            x: Training data, shape ``(N, *data_shape)``.
        """
        codes = torch.cat([self.encoder(self._checked(part)) for part in x.split(rows_of(x.shape))]).cpu().double()
        centred = codes - codes.mean(0)
        # Codes in a subspace, such as codes longer than a datum, have a singular covariance, without a Cholesky factor.
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(codes))
        self.code_mean.copy_(codes.mean(0))
        self.code_scale.copy_(axes * variances.clamp(min=0).sqrt())

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        r"""Decode draws from the normal distribution fitted to the codes.

        .. math:: g(m + S \epsilon), \quad \epsilon \sim N(0, I)

        Args:
            num_samples: The number of draws.

        Returns:
            The decoded draws, shape ``(num_samples, *data_shape)``.

        Raises:
            ValueError: If ``num_samples`` is below 1.
        """
        check_count("num_samples", num_samples)
        noise = torch.randn(num_samples, self.latent_dim, dtype=self.code_mean.dtype, device=self.code_mean.device)
        return self.decode(self.code_mean + noise @ self.code_scale.T).mean

    @torch.no_grad()
    def squared_error(self, x: Tensor) -> Tensor:
        r"""Return the squared error of each reconstruction, :math:`\|x - g(f(x))\|^2`.

        Args:
            x: Data, shape ``(..., *data_shape)``.

        Returns:
            The sum of squared errors over each datum, shape ``(...)``, in squared units of the data.
        """
        return squared_error(self.reconstruct(x), x, len(self.data_shape))

    @torch.no_grad()
    def center_output(
        self,
        mean: Tensor,
        scale: float | None = None,  # noqa: ARG002  # part of the protocol
    ) -> None:
        """Set the decoder's output bias so that reconstructions start at ``mean``.

        Args:
            mean: Mean of the training data, shape ``data_shape``.
            scale: Standard deviation of the training data; this model ignores ``scale``.

        Raises:
            ValueError: If ``mean`` has another shape, or the decoder has no layer ``head`` with one bias for each pixel.
        """
        if tuple(mean.shape) != self.data_shape:
            raise ValueError(f"mean: expected shape {self.data_shape}, got {tuple(mean.shape)}.")
        set_output_bias(self.decoder, self.likelihood, mean)


def squared_error(output: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """Return ``(output - x)**2``, summed over the last ``event_dim`` dimensions."""
    return (output - x).square().flatten(-event_dim).sum(-1)
