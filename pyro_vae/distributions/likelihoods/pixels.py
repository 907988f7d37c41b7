"""Likelihoods of pixels in [0, 1]: Bernoulli and continuous Bernoulli."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.provenance import ProvenanceTensor, extract_provenance, track_provenance
from torch import Tensor

from pyro_vae.distributions.base import Likelihood


def _logit(mean: Tensor) -> Tensor:
    """Return the logit of a mean, finite at 0 and 1."""
    return torch.logit(mean.clamp(1e-3, 1 - 1e-3))


class _LogBernoulli(torch.autograd.Function):
    r"""The log probability of a Bernoulli with logits l, with its gradient.

    .. math:: x l - \max(l, 0) + \log \sigma(|l|), \quad \text{gradient } x - \sigma(l)

    The value is the negative of PyTorch's binary cross-entropy with logits. PyTorch computes the last term as
    -log1p(exp(-|l|)), but on a CPU it vectorizes only log and sigmoid, not log1p (benchmarks/kernels.py). The absolute error is
    one rounding of a number in [1/2, 1]: below 6e-8 nats per pixel in float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return (x * logits).sub_(logits.clamp(min=0)).add_(logits.abs().sigmoid_().log_())

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, x = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives allow no in-place operations
            residual = (x - torch.sigmoid(logits)) * grad[0]
        else:
            residual = torch.sigmoid(logits).sub_(x).mul_(grad[0]).neg_()
        return residual, (logits * grad[0] if ctx.needs_input_grad[1] else None)


class _Pixels(dist.Bernoulli):
    """A Bernoulli with logits and a faster ``log_prob``."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args and not bool(((value == 0) | (value == 1)).all()):
            raise ValueError(
                "likelihood bernoulli: expected pixels that are 0 or 1, got other values; binarize the pixels, or use "
                "likelihood='continuous-bernoulli'."
            )
        inputs = torch.broadcast_tensors(self.logits, value)
        if not any(isinstance(tensor, ProvenanceTensor) for tensor in inputs):
            return _LogBernoulli.apply(*inputs)
        # elbo("graph") runs the model on Pyro's ProvenanceTensor; an autograd Function passes no gradient through it
        plain, depends_on = extract_provenance(inputs)
        return track_provenance(_LogBernoulli.apply(*plain), depends_on)


class Bernoulli(Likelihood):
    r"""Likelihood of independent pixels that are 0 or 1.

    .. math:: \log p(x|z) = \textstyle\sum_d x_d \log \mu_d + (1 - x_d) \log(1 - \mu_d)

    The decoder's output is the logit of the mean :math:`\mu`. p(x|z) is a probability, so log p(x|z) is at most 0.
    """

    support: ClassVar[str] = "binary"
    density: ClassVar[bool] = False
    bits_per_dim: ClassVar[bool] = True

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) with logits ``params``, shape ``(..., *data_shape)``."""
        return _Pixels(logits=params).to_event(self.event_dim)

    def bias(self, mean: Tensor) -> Tensor:
        """Return the decoder output for a mean, the logit of ``mean``."""
        return _logit(mean)


class ContinuousBernoulli(Likelihood):
    r"""Likelihood of independent pixels in [0, 1].

    .. math:: \log p(x|z) = \textstyle\sum_d \log C(\lambda_d) + x_d \log\lambda_d + (1-x_d) \log(1-\lambda_d)

    p(x|z) is a density, so log p(x|z) may be positive. C is the normalizer, which a Bernoulli on grey pixels would lack.

    References:
        Loaiza-Ganem, Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders", 2019.
    """

    support: ClassVar[str] = "unit"

    def forward(self, params: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) with the logits ``params`` of lambda.

        ``params`` have the shape ``(..., *data_shape)``.
        """
        return dist.ContinuousBernoulli(logits=params).to_event(self.event_dim)

    def bias(self, mean: Tensor) -> Tensor:
        """Return an approximate decoder output for a mean: the mean's logit."""
        return _logit(mean)
