r"""Inpainting: hidden pixels given visible ones.

.. math:: p(x_H|x_V) = \textstyle\int p(x_H|z)\, p(z|x_V)\, dz

:func:`inpaint` draws hidden pixels x_H given visible pixels x_V. :func:`hidden_log_px` estimates the log-likelihood of the true
hidden pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.errors import check_count, check_counts
from pyro_vae.evidence.annealing.annealed import Annealer
from pyro_vae.evidence.annealing.path import AnnealingPath
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.sampler import CHUNK_ROWS, Sampler
from pyro_vae.evidence.refinement.refined import Refined, refine
from pyro_vae.models.base import mean_image
from pyro_vae.models.inpainting import Partial, check_visible, seen
from pyro_vae.models.protocol import Autoencodes, PyroModel
from pyro_vae.system.randomness import seeded

Method = Literal["importance", "hmc"]

#: Default number of draws or chains for each method.
DEFAULT_NUM_SAMPLES: dict[Method, int] = {"importance": 2000, "hmc": 32}


@dataclass(frozen=True)
class Filling:
    """Several fillings of each datum's hidden pixels, with mean and spread.

    Attributes:
        images: S fillings of B data, shape ``(S, B, *data_shape)``. Visible pixels are as given; hidden pixels are
            :math:`E[x_H|z]` at a draw z from :math:`p(z|x_V)`.
        mean: :math:`E[x_H|x_V]` from all draws for hidden pixels, the data for visible pixels, shape ``(B, *data_shape)``.
        spread: Standard deviation of :math:`E[x|z]` over :math:`p(z|x_V)`, shape ``(B, *data_shape)``; 0 for visible pixels.
        z: Latent vectors of the fillings, shape ``(S, B, Z)``.
        estimate: Estimate of log p(x_V) for each datum. Its ESS and Pareto k show how far the fillings can be trusted.
    """

    images: Tensor
    mean: Tensor
    spread: Tensor
    z: Tensor
    estimate: Estimate


@torch.no_grad()
def inpaint(
    vae: Autoencodes,
    x: Tensor,
    visible: Tensor,
    num_fillings: int = 8,
    method: Method = "importance",
    num_samples: int | None = None,
    num_steps: int = 200,
    seed: int | None = None,
) -> Filling:
    r"""Fill hidden pixels by draws of z given the visible pixels.

    .. math:: z_k \sim q(z|x_V), \quad w_k = p(z_k)\, p(x_V|z_k) / q(z_k|x_V), \quad
        x_H \sim \textstyle\sum_k \tilde w_k\, \delta_{E[x_H|z_k]}

    ``"importance"`` draws from the guide, refined for these data, and resamples the draws by importance weight. ``"hmc"``
    anneals chains from the prior to the posterior by Hamiltonian moves, and resamples the ends of the chains by weight. It is
    slower, but good if the posterior has several modes that no single normal covers. ``"importance"`` is exact in the limit of
    many draws, ``"hmc"`` in the limit of many steps.

    Args:
        vae: A model with ``prior``, ``encode`` and ``decode`` whose pixels are independent given z, such as
            :class:`pyro_vae.VAE` or :class:`pyro_vae.models.inpainting.InpaintingVAE`, whose encoder is trained on hidden
            pixels.
        x: Data, shape ``(B, *data_shape)``; hidden pixels may have any value.
        visible: True where a pixel is visible, shape ``data_shape`` or ``(B, *data_shape)``.
        num_fillings: Number of fillings S for each datum.
        method: ``"importance"`` or ``"hmc"``.
        num_samples: Number K of draws or chains for each datum; None: 2,000 draws or 32 chains.
        num_steps: Number of steps of the refinement or the annealing.
        seed: Seed of all draws, which leaves torch's generators unchanged; None: draw from torch's generators.

    Returns:
        The fillings.

    Raises:
        ValueError: If the mask has another shape, the pixels are not independent given z, or a number is below 1.

    References:
        Rubin, "The calculation of posterior distributions by data augmentation: comment", 1987 (importance resampling);
        Neal, "Annealed importance sampling", 2001.
    """
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {list(get_args(Method))}, got {method!r}.")
    num = DEFAULT_NUM_SAMPLES[method] if num_samples is None else num_samples
    check_counts(num_fillings=num_fillings, num_samples=num, num_steps=num_steps)
    visible = check_visible(visible, x, vae.data_shape)
    with seeded(seed), _eval_mode(vae):
        draw = _importance_samples if method == "importance" else _chain_ends
        z, log_w, estimate = draw(Partial(vae), x, visible, num, num_steps)
        mean, spread = _mean_and_spread(vae, z, log_w.softmax(0))
        rows = torch.multinomial(log_w.softmax(0).T, num_fillings, replacement=True).T
        chosen = z.gather(0, rows[..., None].expand(*rows.shape, z.shape[-1]).to(z.device))
        images = torch.stack([mean_image(vae.decode(each)) for each in chosen])
    return Filling(
        images=torch.where(visible, x, images),
        mean=torch.where(visible, x, mean),
        spread=torch.where(visible, 0.0, spread),
        z=chosen,
        estimate=estimate,
    )


def _refined(partial: Partial, x: Tensor, visible: Tensor, steps: int, seed: int | None = None) -> Refined:
    """Refine the guide for these data, as ``refined_importance_sampling`` does."""
    return refine(
        partial.model, partial.guide, x, visible, steps=steps, num_particles=8, full_covariance=True, seed=seed
    )


class _WeightedDraws(NamedTuple):
    """K weighted draws of z from p(z|x_V), for each of B data.

    Attributes:
        z: Draws, shape ``(K, B, Z)``.
        log_w: Log weights, shape ``(K, B)``, float64, nats.
        estimate: Estimate of log p(x_V) for each datum.
    """

    z: Tensor
    log_w: Tensor
    estimate: Estimate


def _importance_samples(partial: Partial, x: Tensor, visible: Tensor, num: int, steps: int) -> _WeightedDraws:
    """Draw latents from the refined guide, with importance weights."""
    refined = _refined(partial, x, visible, steps)
    q = poutine.trace(refined).get_trace(x, visible).nodes["z"]["fn"]
    parts = []
    for size in _chunks(num, len(x)):
        z = q.sample((size,))
        likelihood = seen(partial.vae.decode(z), visible).log_prob(torch.where(visible, x, 0.0))
        parts.append((z, likelihood, partial.vae.prior().log_prob(z) - q.log_prob(z)))
    z, likelihood, ratio = (torch.cat(part) for part in zip(*parts, strict=True))
    return _WeightedDraws(z, (likelihood + ratio).double(), Estimate.from_weights(likelihood, ratio))


def _chain_ends(partial: Partial, x: Tensor, visible: Tensor, num: int, steps: int) -> _WeightedDraws:
    """Anneal chains and return the latents at the chains' ends, with weights."""
    path = AnnealingPath(partial.model, partial.guide, (x, visible), {}, "prior")
    annealer = Annealer.tuned(path, num, steps)
    chains = annealer.run(path.draw(num))
    z = biject_to(partial.vae.prior().support)(chains.u)
    return _WeightedDraws(z, chains.log_w, annealer.lower_bound(chains))


def _mean_and_spread(vae: Autoencodes, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weighted mean and standard deviation of E[x|z] over draws.

    Args:
        vae: The model.
        z: Draws, shape ``(K, B, Z)``.
        weights: Weights of the draws, shape ``(K, B)``, with sum 1 over draws.

    Returns:
        Mean and standard deviation, each of shape ``(B, *data_shape)``.
    """
    reference = mean_image(vae.decode(z[0]))  # squares of differences from it lose fewer digits
    total, squares = torch.zeros_like(reference), torch.zeros_like(reference)
    for part, share in zip(_split(z), _split(weights), strict=True):
        away = mean_image(vae.decode(part)) - reference
        share = share.to(away).reshape(*share.shape, *(1,) * len(vae.data_shape))
        total = total + (share * away).sum(0)
        squares = squares + (share * away.square()).sum(0)
    return reference + total, (squares - total.square()).clamp(min=0).sqrt()


@dataclass(frozen=True)
class HiddenLikelihood:
    r"""Log-likelihood of hidden pixels given visible ones.

    .. math:: \log p(x_H|x_V) = \log p(x) - \log p(x_V)

    The estimate is a difference of two stochastic lower bounds. Its bias is the difference of the bounds' biases and may have
    either sign. Both bounds use the same noise, so that most of the error cancels in the difference.

    Attributes:
        log_px: :math:`\log p(x_H|x_V)`, nats, higher is better, shape ``(B,)``, float64, CPU.
        std_error: Monte Carlo standard error of ``log_px``, nats, shape ``(B,)``, float64, CPU. It comes from the delta method
            over pairs of weights from the same noise, sd(w / mean(w) - v / mean(v)) / sqrt(K), and is usually below the error
            of either estimate. NaN if ``whole`` or ``visible`` cannot be trusted. If no pixel is hidden, both ``std_error`` and
            ``log_px`` are 0.
        whole: Estimate of log p(x).
        visible: Estimate of log p(x_V).
    """

    log_px: Tensor
    std_error: Tensor
    whole: Estimate
    visible: Estimate

    @property
    def reliable(self) -> Tensor:
        """True where both estimates can be trusted, shape ``(B,)``, bool."""
        return self.whole.reliable & self.visible.reliable

    def mean(self) -> tuple[float, float]:
        """Mean of ``log_px`` over data, with its Monte Carlo standard error.

        Both are in nats. The error is NaN if the error of any datum is NaN.
        """
        return float(self.log_px.mean()), float(self.std_error.square().sum().sqrt() / len(self.std_error))


@torch.no_grad()
def hidden_log_px(
    vae: Autoencodes, x: Tensor, visible: Tensor, num_samples: int = 2000, num_steps: int = 200, seed: int | None = None
) -> HiddenLikelihood:
    r"""Estimate the log-likelihood of hidden pixels given visible ones.

    .. math:: \log p(x_H|x_V) = \log p(x) - \log p(x_V)

    Each term is importance sampled from a guide refined for it, see :func:`pyro_vae.evidence.refined_importance_sampling`. Both
    terms use the same noise: draw k for the first term is close to draw k for the second, so that most of the error cancels in
    the difference. A guide that is not made of normals draws independently for the two terms.

    Args:
        vae: See :func:`inpaint`.
        x: Data, shape ``(B, *data_shape)``, with the true values of the hidden pixels.
        visible: True where a pixel is visible, shape ``data_shape`` or ``(B, *data_shape)``.
        num_samples: Number of draws K for each datum and estimate, at least 2.
        num_steps: Number of steps of each refinement.
        seed: Seed of all draws; None: draw from torch's generators.

    Returns:
        The log-likelihood of each datum's hidden pixels, with its error.

    Raises:
        ValueError: See :func:`inpaint`.
    """
    check_count("num_samples", num_samples, least=2)
    visible = check_visible(visible, x, vae.data_shape)
    with seeded(seed), _eval_mode(vae):
        partial = Partial(vae)
        streams = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        (whole, w), (part, v) = (
            _relative_weights(partial, x, mask, num_samples, num_steps, streams)
            for mask in (torch.ones_like(visible), visible)
        )
    error = (w - v).std(0) / math.sqrt(num_samples)
    error = torch.where(whole.std_error.isnan() | part.std_error.isnan(), math.nan, error)
    hides = ~visible.flatten(1).all(1).cpu()  # without hidden pixels, the log-likelihood is 0
    return HiddenLikelihood((whole.log_px - part.log_px) * hides, torch.where(hides, error, 0.0), whole, part)


def _relative_weights(
    partial: Partial, x: Tensor, visible: Tensor, num: int, steps: int, seed: int
) -> tuple[Estimate, Tensor]:
    """Estimate log p(x_V) by importance sampling from the refined guide.

    If the guide is made of normals, draw k of datum i has the same noise for any mask.

    Returns:
        The estimate, and the importance weights divided by their mean, shape ``(K, B)``, float64, CPU.
    """
    refined = _refined(partial, x, visible, steps, seed)
    sampler = Sampler(partial.model, refined, seed)
    chunks = sampler.weights(sampler.proposal((x, visible), {}), num)
    likelihood, ratio = (torch.cat(part) for part in zip(*chunks, strict=True))
    estimate = Estimate.from_weights(likelihood, ratio)
    return estimate, ((likelihood + ratio).cpu().double() - estimate.log_px).exp()


@contextmanager
def _eval_mode(vae: PyroModel) -> Iterator[None]:
    """Context that puts the model in ``eval()`` mode."""
    was_training = vae.training
    vae.eval()
    try:
        yield
    finally:
        vae.train(was_training)


def _chunks(num: int, size: int) -> list[int]:
    """Choose numbers of draws for calls that fit the processor's cache.

    Args:
        num: Total number of draws.
        size: Number of data.
    """
    each = max(1, CHUNK_ROWS // size)
    return [min(each, num - start) for start in range(0, num, each)]


def _split(values: Tensor) -> tuple[Tensor, ...]:
    return values.split(_chunks(len(values), values.shape[1])[0] if math.prod(values.shape) else 1)
