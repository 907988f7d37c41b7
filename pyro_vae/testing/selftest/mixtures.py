"""Exact values for a VAE with labels and for the aggregate posterior."""

from __future__ import annotations

from itertools import permutations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.testing.selftest.linear_gaussian import LinearGaussianVAE, hermite

SIZE = 3  # batch size for the estimates of the total correlation
CODE_NODES = 24


class Labelled(nn.Module):
    r"""The linear-Gaussian VAE with a label y that shifts the datum.

    .. math:: p(x) = \textstyle\sum_y \pi_y\, p(x - s_y), \qquad q(y|x) \propto p(y|x)^{t}, \quad q(z|x, y) = q(z|x - s_y)

    Here :math:`s_y` is the shift of label y; :math:`p(x - s_y)` and :math:`q(z|x - s_y)` are those of the VAE without labels.
    If KL is the divergence of that VAE's guide from its posterior, the ELBO is
    :math:`\sum_y q(y|x) [\log \pi_y + \log p(x - s_y) - \log q(y|x) - KL]`.

    Args:
        temper: Exponent t of q(y|x); at 1 it is the exact posterior of the label.
    """

    def __init__(self, temper: float = 0.5) -> None:
        super().__init__()
        self.reference = LinearGaussianVAE()
        self.shifts = nn.Parameter(torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5))
        self.logits = nn.Parameter(torch.tensor([0.2, 0.7, -0.4], dtype=torch.float64))
        self.temper = nn.Parameter(torch.tensor(temper, dtype=torch.float64))

    def model(self, x: Tensor) -> Tensor:
        """The model: draw label y and code z, observe datum x."""
        pyro.module(f"labelled.{self.reference.name}", self)
        vae = self.reference.vae
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", vae.prior())
            loc = vae.decode(z).mean + self.shifts[y]
            return pyro.sample("x", dist.Normal(loc, vae.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """The guide q(y|x) q(z|x, y), with y enumerated."""
        pyro.module(f"labelled.{self.reference.name}", self)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.log_q(x)), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.reference.q(x - self.shifts[y]))

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, y) of each label y, shape ``(B, 3)``, nats."""
        return self.logits.log_softmax(0) + self.reference.vae.log_px(x[:, None] - self.shifts)

    def log_q(self, x: Tensor) -> Tensor:
        """Return log q(y|x) of each label y, shape ``(B, 3)``, nats."""
        return (self.temper * self.log_joint(x).detach()).log_softmax(-1)

    def log_px(self, x: Tensor) -> Tensor:
        """Return log p(x), shape ``(B,)``, nats."""
        return self.log_joint(x).logsumexp(-1)

    def elbo(self, x: Tensor) -> Tensor:
        """Return the ELBO, shape ``(B,)``, nats; differentiable in all parameters."""
        given_label = self.logits.log_softmax(0) + self.reference.elbo(x[:, None] - self.shifts)
        return (self.log_q(x).exp() * (given_label - self.log_q(x))).sum(-1)


def weights_of(estimator: str, size: int, total: int) -> Tensor:
    r"""Return the weights of q(z|x_i) in a batch's estimate of q(z).

    The estimate is a weighted sum over the data of the batch. The first weight is for the datum from which z was drawn.
    With B = ``size``, N = ``total`` and M = B - 1 the weights are:

    - ``"all"``: equal; the batch has all data, so the estimate is q(z).
    - ``"weighted"``: 1 / B each, without the factor 1/N of the definition.
    - ``"stratified"``: 1/N for the first datum, (N - M) / (N M) for the second, and 1/M for each of the rest.
    - ``"even"``: 1/N for the first datum, and equal weights for the rest.

    Args:
        estimator: Name of the estimator, as above.
        size: Batch size.
        total: Number of data.

    Returns:
        The weights, shape ``(size,)``.

    References:
        Chen et al., "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, appendix C.
    """
    others = size - 1
    if estimator == "all":
        return torch.full((size,), 1 / size, dtype=torch.float64)
    if estimator == "weighted":
        return torch.full((size,), 1 / size, dtype=torch.float64)
    if estimator == "even":
        return torch.tensor([1 / total, *[(1 - 1 / total) / others] * others], dtype=torch.float64)
    one, rest = (total - others) / (total * others), [1 / others] * (others - 1)
    return torch.tensor([1 / total, one, *rest], dtype=torch.float64)


def batches(estimator: str, num: int) -> Tensor:
    """Return the data indices of all batches, in every order.

    For ``"all"`` a batch has all ``num`` data, and each datum comes first once.

    Returns:
        A row for each of the R batches, shape ``(R, size)``.
    """
    if estimator == "all":
        return torch.stack([torch.arange(num).roll(-k) for k in range(num)])
    return torch.tensor(list(permutations(range(num), SIZE)))


def rate_parts(reference: LinearGaussianVAE, x: Tensor, estimator: str) -> Tensor:
    r"""Return the three parts of the rate, averaged over all batches.

    The parts are the mutual information I(x; z), the total correlation, and the KL of the latent units:

    .. math:: E_i E_{q(z|x_i)} \big[\log q(z|x_i) - \log \hat q(z), \quad
        \log \hat q(z) - \textstyle\sum_j \log \hat q(z_j), \quad \sum_j \log \hat q(z_j) - \log p(z)\big]

    where :math:`\hat q` is a batch's estimate of q(z), see :func:`weights_of`. Computed by quadrature; differentiable. The
    parts are exact for ``"all"``. For other estimators :math:`\log \hat q(z)` is biased, and the result includes this bias.

    Returns:
        The three parts, shape ``(3,)``, nats per datum.
    """
    loc, root = reference.normal(x)
    rows = batches(estimator, len(x))
    log_weights = weights_of(estimator, rows.shape[1], len(x)).log()
    grid, shares = hermite(2, CODE_NODES)
    own = rows[:, 0]
    z = loc[own] + (root[own] @ grid[:, None, :, None]).squeeze(-1)  # (P, R, 2)
    joint = dist.MultivariateNormal(loc[rows], scale_tril=root[rows]).log_prob(z[:, :, None])  # (P, R, B)
    spread = root.square().sum(-1).sqrt()
    units = dist.Normal(loc[rows], spread[rows]).log_prob(z[:, :, None])  # (P, R, B, 2)
    log_q = (joint + log_weights).logsumexp(-1)
    log_product = (units + log_weights[:, None]).logsumexp(-2).sum(-1)
    prior = reference.vae.prior().log_prob(z)
    parts = torch.stack([joint[..., 0] - log_q, log_q - log_product, log_product - prior])
    return (parts.mean(-1) * shares).sum(-1)
