"""Probabilistic principal component analysis: the VAE of which everything is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.models.vae import VAE
from pyro_vae.networks import MLP
from pyro_vae.networks.build import Network


class LinearVAE(VAE):
    r"""Probabilistic principal component analysis, the linear-Gaussian VAE.

    .. math:: p(z) = N(0, I), \quad p(x|z) = N(W z + b, \sigma^2 I), \quad p(x) = N(b, W W^\top + \sigma^2 I)

    The guide is the exact posterior, a function of the model's own parameters: every draw of the ELBO is log p(x), and
    its gradient is that of log p(x), without noise. :meth:`maximize_likelihood` needs no training at all. The yardstick
    of estimators, and of what a nonlinear VAE gains.

    Args:
        data_shape: Shape of one datum; D is the number of its pixels.
        latent_dim: Z, below D.
        hidden: Widths of the hidden layers of the encoder, where one is trained; p(x|z) has none.
        activation: Of these layers.
        likelihood: ``"normal"``, the only one for which the rest is exact.
        posterior: ``"exact"``, or a name from ``distributions.POSTERIORS`` or a module, for an encoder that is trained: the
            linear VAE of Lucas et al., whose ELBO is log p(x) at its optimum alone.
        encoder: A network in place of that encoder; the posterior is then ``"normal"`` where none is named.
        decoder: None: it is linear by definition.

    Attributes:
        exact: Whether the guide is the exact posterior.

    Raises:
        ValueError: If a size is out of range, a name is unknown, the likelihood is another, or a decoder is given.

    References:
        Tipping, Bishop, "Probabilistic Principal Component Analysis", 1999; Lucas, Tucker, Grosse, Norouzi, "Don't Blame
        the ELBO! A Linear VAE Perspective on Posterior Collapse", 2019.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (),
        activation: str = "tanh",
        *,
        likelihood: str = "normal",
        posterior: str | nn.Module = "exact",
        encoder: Network = None,
        decoder: Network = None,
    ) -> None:
        if likelihood != "normal":
            raise ValueError(f"likelihood: expected 'normal' in a linear model, got {likelihood!r}; use it, or a VAE.")
        if decoder is not None:
            raise ValueError("decoder: expected none in a linear model, got one; leave it out, or use a VAE.")
        exact = encoder is None and posterior == "exact"
        super().__init__(
            data_shape,
            latent_dim,
            hidden,
            activation,
            likelihood="normal",
            posterior="normal" if posterior == "exact" else posterior,
            encoder=nn.Identity() if exact else encoder,
            decoder=nn.Identity(),
        )
        if latent_dim >= math.prod(data_shape):
            raise ValueError(
                f"latent_dim: expected less than the {math.prod(data_shape)} numbers of a datum, got {latent_dim}; with as "
                "many nothing is left to be noise."
            )
        self.exact, self.decoder = exact, MLP((latent_dim,), data_shape)

    @property
    def weight(self) -> Tensor:
        """W, shape ``(D, Z)``; its columns span the principal subspace where the likelihood is largest."""
        return self.decoder.head.weight  # type: ignore[union-attr, return-value]

    @property
    def scale(self) -> Tensor:
        """Standard deviation sigma of the noise, 0-dim, positive."""
        return self.likelihood.log_scale.exp()

    def guide(self, x: Tensor) -> Tensor:
        """The exact posterior p(z|x), or the encoder's q(z|x); see :meth:`VAE.guide`."""
        if self.exact:
            self._register("decoder", "likelihood")  # it is made of them
        return super().guide(x)

    def encode(self, x: Tensor) -> TorchDistributionMixin:
        """The guide's q(z|x): data of shape ``(..., *data_shape)`` to a distribution with event shape ``(Z,)``."""
        return self.exact_posterior(x) if self.exact else super().encode(x)

    def exact_posterior(self, x: Tensor) -> TorchDistributionMixin:
        r"""The posterior :math:`p(z|x) = N(S W^\top (x - b) / \sigma^2,\ S)`, :math:`S^{-1} = I + W^\top W / \sigma^2`.

        Args:
            x: Data, shape ``(..., *data_shape)``.

        Returns:
            A multivariate normal, event shape ``(Z,)``.

        Raises:
            ValueError: If the data have another shape.

        References:
            Tipping, Bishop, 1999, eq. 6.
        """
        projection = self.weight.T / self.scale.square()
        precision = torch.eye(self.latent_dim).to(projection) + projection @ self.weight
        residual = self._checked(x).flatten(-len(self.data_shape)) - self.decoder.head.bias  # type: ignore[union-attr, operator]
        tril = _root_of_inverse(precision)
        return dist.MultivariateNormal(residual @ projection.T @ tril @ tril.T, scale_tril=tril)

    def log_px(self, x: Tensor) -> Tensor:
        r"""Exact log marginal likelihood, by Bayes' rule at the posterior mean m.

        .. math:: \log p(x) = \log p(m) + \log p(x|m) - \log p(m|x) = \log N(x; b, W W^\top + \sigma^2 I)

        Args:
            x: Data, shape ``(..., *data_shape)``.

        Returns:
            Shape ``(...)``, nats, higher is better; a density, so it may be positive.
        """
        posterior = self.exact_posterior(x)
        m = posterior.mean
        return self.prior().log_prob(m) + self.decode(m).log_prob(x) - posterior.log_prob(m)

    @torch.no_grad()
    def maximize_likelihood(self, x: Tensor) -> None:
        r"""Set W, b and sigma to where the likelihood of the data is largest, in closed form.

        .. math:: b = \bar x, \quad \sigma^2 = \tfrac{1}{D - Z} \textstyle\sum_{j > Z} \lambda_j, \quad
            W = U_Z (\Lambda_Z - \sigma^2 I)^{1/2}

        with the eigenvalues :math:`\lambda_1 \ge \lambda_2 \ge \dots` and eigenvectors U of the data's covariance (its sum
        divided by N). Any rotation of W is as good; this one has orthogonal columns, the first with the largest variance.

        Args:
            x: Data, shape ``(N, *data_shape)``.

        Raises:
            ValueError: If the data have another shape, or vary in no more than Z directions, so that sigma would be 0.

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
                f"maximize_likelihood: expected data that vary in more than {self.latent_dim} directions, got some without "
                "noise beyond these, whose density is unbounded; take a smaller latent_dim or more data."
            )
        kept = variances[: self.latent_dim]
        self.weight.copy_(directions[:, : self.latent_dim] * (kept - noise).clamp(min=0).sqrt())
        self.decoder.head.bias.copy_(mean)  # type: ignore[union-attr, operator]
        self.likelihood.log_scale.fill_(noise.log() / 2)


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances, descending, and directions in columns, of centred data of shape ``(N, D)``; min(N, D) of them."""
    num, dim = centred.shape
    if dim <= num:
        values, vectors = torch.linalg.eigh(centred.T @ centred / num)
        return values.flip(0).clamp(min=0), vectors.flip(1)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    return values.square() / num, vectors.T


def _root_of_inverse(precision: Tensor) -> Tensor:
    r"""The lower triangular L with :math:`L L^\top = P^{-1}`, of P that cannot but be positive definite.

    So nothing is checked: a check is an effect, with which a step cannot be compiled; what is not finite shows in the loss.
    """
    upper = torch.linalg.cholesky_ex(precision.flip(-2, -1)).L.flip(-2, -1)
    return torch.linalg.solve_triangular(upper.mT, torch.eye(len(precision)).to(precision), upper=False)


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    r"""Angles between the subspaces that the columns of two matrices span: all 0 where they are the same.

    .. math:: \sin \theta_j = \sigma_j\big((I - Q_a Q_a^\top) Q_b\big)

    By sines, which are accurate for small angles where cosines are not.

    Args:
        a: Shape ``(D, Z)``, of full column rank.
        b: Shape ``(D, Z')``, Z' at most Z, of full column rank.

    Returns:
        Shape ``(Z',)``, radians from 0 to pi / 2, descending; float64.

    Raises:
        ValueError: If the columns are of different lengths, or b has more of them.

    References:
        Björck, Golub, "Numerical Methods for Computing Angles Between Linear Subspaces", 1973.
    """
    if a.dim() != 2 or b.dim() != 2 or len(a) != len(b) or b.shape[1] > a.shape[1]:
        raise ValueError(
            f"b: expected columns as long as those of a, shape {tuple(a.shape)}, and no more of them, got {tuple(b.shape)}."
        )
    qa, qb = (torch.linalg.qr(m.detach().double()).Q for m in (a, b))
    return torch.linalg.svdvals(qb - qa @ (qa.T @ qb)).clamp(max=1).arcsin()
