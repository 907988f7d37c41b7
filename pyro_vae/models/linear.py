"""Probabilistic principal component analysis: a VAE with an exact log p(x)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions import Normal
from pyro_vae.models.vae import VAE
from pyro_vae.networks import MLP
from pyro_vae.networks.build import NetworkLike, NetworkMaker


class LinearVAE(VAE):
    r"""Probabilistic principal component analysis, the linear-Gaussian VAE.

    .. math:: p(z) = N(0, I), \quad p(x|z) = N(W z + b, \sigma^2 I), \quad p(x) = N(b, W W^\top + \sigma^2 I)

    The guide is the exact posterior, computed from the model's parameters. Every draw of the ELBO therefore equals log p(x),
    and its gradient is the gradient of log p(x), without noise. :meth:`maximize_likelihood` replaces training. The model is a
    reference for estimators of log p(x), and a baseline for nonlinear VAEs.

    Args:
        data_shape: Shape of one datum, with D numbers in all.
        latent_dim: Size Z of the latent vector, less than D.
        hidden: Widths of the hidden layers of a trained encoder; the decoder has no hidden layers.
        activation: Name of the activation of these layers.
        likelihood: ``"normal"``, the only likelihood with an exact posterior.
        posterior: ``"exact"`` for the exact posterior; a name from ``distributions.POSTERIORS`` or a module for a trained
            encoder. With a trained encoder the model is the linear VAE of Lucas et al., whose ELBO equals log p(x) only at the
            optimum.
        prior: ``"normal"``, the only prior with an exact posterior.
        network: Kind of the trained encoder, see :class:`VAE`.
        encoder: Module that computes the parameters of q(z|x); the default posterior is then ``"normal"``.
        decoder: Must be None: the decoder is linear by definition.

    Attributes:
        exact: True if the guide is the exact posterior.

    Raises:
        ValueError: If a size is out of range, a name is unknown, the likelihood or the prior is not ``"normal"``, or a
            decoder is given.

    References:
        Tipping, Bishop, "Probabilistic Principal Component Analysis", 1999; Lucas, Tucker, Grosse, Norouzi, "Don't Blame
        the ELBO! A Linear VAE Perspective on Posterior Collapse", 2019.
    """

    likelihood: Normal
    decoder: MLP

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (),
        activation: str = "tanh",
        *,
        likelihood: str = "normal",
        posterior: str | nn.Module = "exact",
        prior: str = "normal",
        network: str | NetworkMaker = "mlp",
        encoder: NetworkLike = None,
        decoder: NetworkLike = None,
    ) -> None:
        for name, value in (("likelihood", likelihood), ("prior", prior)):
            if value != "normal":
                raise ValueError(f"{name}: expected 'normal' in a linear model, got {value!r}; use 'normal', or a VAE.")
        if decoder is not None:
            raise ValueError("decoder: a linear model takes no decoder; remove the decoder, or use a VAE.")
        exact = encoder is None and posterior == "exact"
        super().__init__(
            data_shape,
            latent_dim,
            hidden,
            activation,
            likelihood="normal",
            posterior="normal" if posterior == "exact" else posterior,
            network=network,
            encoder=nn.Identity() if exact else encoder,
            decoder=nn.Identity(),
        )
        if latent_dim >= math.prod(data_shape):
            raise ValueError(
                f"latent_dim: expected less than the {math.prod(data_shape)} numbers of a datum, got {latent_dim}; take "
                "fewer latent units, so that the noise has a direction of its own."
            )
        self.exact, self.decoder = exact, MLP((latent_dim,), data_shape)

    @property
    def weight(self) -> Tensor:
        """The matrix W, shape ``(D, Z)``.

        At the maximum likelihood the columns of W span the principal subspace.
        """
        return self.decoder.head.weight

    @property
    def scale(self) -> Tensor:
        """The standard deviation sigma of p(x|z), a positive 0-dim tensor."""
        return self.likelihood.log_scale.exp()

    def guide(self, x: Tensor) -> Tensor:
        """The exact posterior p(z|x), or the encoder's q(z|x); arguments: see :meth:`VAE.guide`."""
        if self.exact:
            self._register("decoder", "likelihood")  # the exact posterior is a function of these parts
        return super().guide(x)

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """Return the posterior that the guide uses, with event shape ``(Z,)``."""
        return self.exact_posterior(x) if self.exact else super().encode(x)

    def exact_posterior(self, x: Tensor) -> TorchDistributionMixin:
        r"""Return the exact posterior p(z|x).

        .. math:: p(z|x) = N(S W^\top (x - b) / \sigma^2,\ S), \quad S^{-1} = I + W^\top W / \sigma^2

        Args:
            x: Data, shape ``(..., *data_shape)``.

        Returns:
            A multivariate normal with event shape ``(Z,)``.

        Raises:
            ValueError: If ``x`` has another shape.

        References:
            Tipping, Bishop, 1999, eq. 6.
        """
        projection = self.weight.T / self.scale.square()
        precision = torch.eye(self.latent_dim).to(projection) + projection @ self.weight
        residual = self._checked(x).flatten(-len(self.data_shape)) - self.decoder.head.bias
        tril = _root_of_inverse(precision)
        return dist.MultivariateNormal(residual @ projection.T @ tril @ tril.T, scale_tril=tril)

    def log_px(self, x: Tensor) -> Tensor:
        r"""Return the exact log p(x), computed by Bayes' rule.

        .. math:: \log p(x) = \log p(m) + \log p(x|m) - \log p(m|x) = \log N(x; b, W W^\top + \sigma^2 I)

        Here m is the mean of the exact posterior p(z|x).

        Args:
            x: Data, shape ``(..., *data_shape)``.

        Returns:
            log p(x), shape ``(...)``, nats, higher is better. p(x) is a density, so log p(x) may be positive.
        """
        posterior = self.exact_posterior(x)
        m = posterior.mean
        return self.prior().log_prob(m) + self.decode(m).log_prob(x) - posterior.log_prob(m)

    @torch.no_grad()
    def maximize_likelihood(self, x: Tensor) -> None:
        r"""Set W, b and sigma to their maximum-likelihood values.

        .. math:: b = \bar x, \quad \sigma^2 = \tfrac{1}{D - Z} \textstyle\sum_{j > Z} \lambda_j, \quad
            W = U_Z (\Lambda_Z - \sigma^2 I)^{1/2}

        Here :math:`\lambda_1 \ge \lambda_2 \ge \dots` are the eigenvalues and U the eigenvectors of the data's covariance
        (divided by N, not N - 1). Every rotation of W has the same likelihood; the W of this method has orthogonal columns, in
        order of decreasing variance.

        Args:
            x: Data, shape ``(N, *data_shape)``.

        Raises:
            ValueError: If ``x`` has another shape, or the data vary in at most Z directions: sigma would then be 0.

        References:
            Tipping, Bishop, 1999, eq. 7-8.
        """
        if x.dim() != 1 + len(self.data_shape) or x.shape[1:] != self.data_shape or len(x) == 0:
            raise ValueError(f"x: expected shape (N, {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}.")
        flat = x.flatten(1).double()
        mean = flat.mean(0)
        variances, directions = _principal(flat - mean)
        noise = variances[self.latent_dim :].sum() / (flat.shape[1] - self.latent_dim)
        if not noise > 1e-12 * variances.sum():
            raise ValueError(
                f"x: expected data that vary in more than {self.latent_dim} directions, got data for which sigma would be 0; "
                "take a smaller latent_dim or more data."
            )
        kept = variances[: self.latent_dim]
        self.weight.copy_(directions[:, : self.latent_dim] * (kept - noise).clamp(min=0).sqrt())
        self.decoder.head.bias.copy_(mean)
        self.likelihood.log_scale.fill_(noise.log() / 2)


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances and directions of the principal components.

    Args:
        centred: Data with mean 0, shape ``(N, D)``.

    Returns:
        The min(N, D) variances, in descending order, and the directions, one in each column.
    """
    num, dim = centred.shape
    if dim <= num:
        values, vectors = torch.linalg.eigh(centred.T @ centred / num)
        return values.flip(0).clamp(min=0), vectors.flip(1)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    return values.square() / num, vectors.T


def _root_of_inverse(precision: Tensor) -> Tensor:
    r"""Return the lower triangular factor L of a precision's inverse.

    .. math:: L L^\top = P^{-1}

    P = I + W'W / sigma^2 is positive definite, so the factorization is not checked; with a check, a training step could
    not be compiled. A non-finite P makes the loss non-finite.
    """
    upper = torch.linalg.cholesky_ex(precision.flip(-2, -1)).L.flip(-2, -1)
    return torch.linalg.solve_triangular(upper.mT, torch.eye(len(precision)).to(precision), upper=False)
