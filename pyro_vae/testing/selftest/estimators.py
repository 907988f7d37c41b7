"""Self-test of the estimators: each estimate beside its exact value."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.inference.weights.log_weights import log_weights
from pyro_vae.testing.selftest.linear_gaussian import Line, LinearGaussianVAE
from pyro_vae.testing.selftest.mixtures import Labelled, rate_parts

CHAINS, STEPS = 16, 200  # of annealing
WHAT = "log p(x), nats"


def estimators(reference: LinearGaussianVAE, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    """Compare each estimator with its exact value, averaged over the data."""
    yield from weights(reference, x, num_samples)
    yield from sampled(reference, x, num_samples, seed)
    yield from annealed(reference, x, seed)
    yield from of_models(reference, x, num_samples, seed)
    yield from of_codes(reference, x, num_samples, seed)
    yield from of_pixels(reference, x, num_samples, seed)


def weights(reference: LinearGaussianVAE, x: Tensor, num_samples: int) -> Iterator[Line]:
    """Check the log weights of the wrong guide and of the posterior."""
    vae = reference.vae
    log_px = vae.log_px(x).detach()
    ratios = (log_weights(reference.model, reference.guide, x, num_samples=num_samples).detach() - log_px).exp()
    yield Line("log_weights", "mean of w / p(x)", 1.0, float(ratios.mean()), _error(ratios))
    draws = log_weights(vae.model, vae.guide, x, num_samples=10).detach()
    yield Line(
        "log_weights, exact posterior", "largest |log w - log p(x)|", 0.0, float((draws - log_px).abs().max()), 0
    )


def sampled(reference: LinearGaussianVAE, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    """Check importance sampling; draws are from guide, prior and refined guide."""
    model, guide = reference.model, reference.guide
    exact = _mean(reference.vae.log_px(x))
    found = evidence.importance_sampling(model, guide, x, num_samples=num_samples, seed=seed).summary()
    yield Line("importance_sampling", WHAT, exact, found.log_px, _known(found.mc_error))
    error = math.hypot(_known(found.elbo_mc_error), _known(found.mc_error))
    yield Line("importance_sampling", "gap = KL(q || posterior)", reference.kl, found.gap, error)
    labelled = Labelled()
    summed = evidence.importance_sampling(
        labelled.model, labelled.guide, x, num_samples=num_samples, seed=seed
    ).summary()
    name = "importance_sampling, three labels"
    yield Line(name, WHAT, _mean(labelled.log_px(x)), summed.log_px, _known(summed.mc_error))
    yield from naive(reference, x, 5 * num_samples, seed)
    refined = evidence.refined_importance_sampling(model, guide, x, num_samples=num_samples, seed=seed)
    yield Line("refined_importance_sampling", WHAT, exact, refined.summary().log_px, _known(refined.summary().mc_error))


def naive(reference: LinearGaussianVAE, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    r"""Check prior sampling, an unbiased estimate of p(x).

    Its standard error is computed from the second moment of the likelihood, which has a closed form:

    .. math:: E_{p(z)}[p(x|z)^2] = (4 \pi \sigma^2)^{-D/2}\, N(x; b, W W^\top + \tfrac12 \sigma^2 I)

    The spread of the draws would underestimate the error, since their tail is heavy.
    """
    vae = reference.vae
    found = evidence.prior_sampling(reference.model, x, num_samples=num_samples, seed=seed).log_px
    log_px = vae.log_px(x).detach()
    noise = vae.scale.detach().square()
    covariance = vae.weight @ vae.weight.T + noise / 2 * torch.eye(x.shape[1]).to(noise)
    half = torch.distributions.MultivariateNormal(vae.decoder.head.bias, covariance).log_prob(x)
    second = half - x.shape[1] / 2 * (4 * math.pi * noise).log()
    variance = (second - 2 * log_px).detach().expm1() / num_samples
    ratio = float((found - log_px).exp().mean())
    yield Line("prior_sampling", "mean of its p(x) / p(x)", 1.0, ratio, float(variance.sum().sqrt()) / len(x))


def annealed(reference: LinearGaussianVAE, x: Tensor, seed: int) -> Iterator[Line]:
    """Check annealed importance sampling, with forward and backward chains.

    The backward chains start at exact posterior draws.
    """
    model, guide = reference.model, reference.guide
    exact = _mean(reference.vae.log_px(x))
    free = len(x) * (CHAINS - 1)
    for start in ("prior", "guide"):
        chains = evidence.annealed_importance_sampling(
            model, guide, x, num_chains=CHAINS, num_steps=STEPS, start=start, seed=seed
        )
        # log w of a chain is nearly normal with standard deviation s, so Var(w) / p(x)^2 = exp(s^2) - 1.
        spread = chains.spread.square().expm1() / chains.num_samples
        name = f"annealed_importance_sampling, {start}"
        yield Line(name, WHAT, exact, chains.summary().log_px, float(spread.sum().sqrt()) / len(x), freedom=free)
    bracket = evidence.bidirectional(model, guide, x, num_chains=CHAINS, num_steps=STEPS, start="guide", seed=seed)
    found, exact = bracket.summary(), _mean(reference.vae.log_px(bracket.args[0]))
    # The bias of a bound is half the squared error of a datum, here less than 0.1 standard errors: so test for equality.
    yield Line("bidirectional, lower", WHAT, exact, found.lower, _known(found.lower_mc_error), freedom=free)
    yield Line("bidirectional, upper", WHAT, exact, found.upper, _known(found.upper_mc_error), freedom=free)


def of_models(reference: LinearGaussianVAE, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    """Check ``gaps``, ``compare``, ``simulate``, ``replicates`` and ``calibrate``."""
    model, guide, vae = reference.model, reference.guide, reference.vae
    gaps = evidence.gaps(model, guide, x, num_samples=num_samples, seed=seed).summary()
    yield Line("gaps", "inference gap, nats", reference.kl, gaps.inference, _known(gaps.inference_mc_error))
    other = LinearGaussianVAE(kind="units")
    pair = {
        name: evidence.importance_sampling(each.model, each.guide, x, num_samples=num_samples, seed=seed + place)
        for place, (name, each) in enumerate({"full": reference, "units": other}.items())
    }
    row = evidence.compare(pair, reference="full")["units"]
    exact = _mean(other.vae.log_px(x) - vae.log_px(x))
    yield Line("compare", "difference of two models, nats", exact, row.difference, _known(row.mc_error))
    many = x[:1].expand(num_samples, -1).contiguous()
    made = evidence.simulate(model, many)
    scores = vae.log_px(made.args[0]).detach()
    yield Line(
        "simulate", "mean log p(x) = - entropy, nats", -_entropy(reference), float(scores.mean()), _error(scores)
    )
    copies = vae.log_px(evidence.replicates(vae, many)()).detach()
    yield Line(
        "replicates", "mean log p(x) = - entropy, nats", -_entropy(reference), float(copies.mean()), _error(copies)
    )
    judged = evidence.calibrate(model, guide, many, num_simulations=num_samples, num_draws=99, seed=seed)
    sets = next(one for one in judged.coverage(0.8) if "log q" in one.name)
    right = coverage(reference, sets.nominal, 99)
    yield Line(
        "calibrate", f"coverage of the {sets.nominal:.0%} set of q", right, sets.actual, _binomial(right, num_samples)
    )


def coverage(reference: LinearGaussianVAE, nominal: float, num_draws: int) -> float:
    r"""Return the exact coverage of the guide's highest-density sets.

    A set is made from L = ``num_draws`` guide draws. A posterior draw is inside if fewer than ``nominal * (L + 1)`` of the L
    draws are nearer to the guide's mean. Distances are measured in units of the guide's covariance. Their squares follow
    :math:`\chi^2_2` for guide draws. For posterior draws they follow a noncentral :math:`\chi^2_2(2 d^2)` divided by
    :math:`c^2`, with the shift d and stretch c of :class:`LinearGaussianVAE`.
    """
    shift, stretch = float(reference.shift.detach()), float(reference.log_stretch.detach().exp())
    points = (np.arange(20000) + 0.5) / 20000
    distances = stats.ncx2.ppf(points, 2, 2 * shift**2) / stretch**2
    inside = round(nominal * (num_draws + 1))
    return float(stats.binom.cdf(inside - 1, num_draws, stats.chi2.cdf(distances, 2)).mean())


def of_codes(reference: LinearGaussianVAE, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    """Check ``aggregate_posterior`` and ``kl_per_unit``."""
    parts = rate_parts(reference, x, "all").detach().tolist()
    found = evidence.aggregate_posterior(reference.model, reference.guide, x, num_samples=5 * num_samples, seed=seed)
    for name, exact in zip(("mutual_information", "total_correlation", "dimension_wise_kl"), parts, strict=True):
        what = f"{name.replace('_', ' ').replace('kl', 'KL')}, nats"
        yield Line("aggregate_posterior", what, exact, getattr(found, name), getattr(found, f"{name}_error"))
    other = LinearGaussianVAE(kind="units")
    off = evidence.kl_per_unit(other.q(x), other.vae.prior()) - other.rates(x)  # type: ignore[operator]
    yield Line("kl_per_unit", "largest |KL - its formula|", 0.0, float(off.detach().abs().max()), 0.0)


def of_pixels(reference: LinearGaussianVAE, x: Tensor, num_samples: int, seed: int) -> Iterator[Line]:
    """Check log-likelihood and mean of hidden pixels, given three visible pixels."""
    vae = LinearGaussianVAE().vae
    vae.encode = reference.q  # type: ignore[method-assign]
    visible = torch.tensor([True, False, True, False, True])
    noise = vae.scale.square() * torch.eye(x.shape[1]).to(vae.scale)
    covariance, bias = (vae.weight @ vae.weight.T + noise).detach(), vae.decoder.head.bias.detach()
    seen = torch.distributions.MultivariateNormal(bias[visible], covariance[visible][:, visible])
    exact = _mean(vae.log_px(x) - seen.log_prob(x[:, visible]))
    hidden = evidence.hidden_log_px(vae, x, visible, num_samples=num_samples, seed=seed)
    yield Line("hidden_log_px", "log p(hidden | seen), nats", exact, *hidden.mean())
    filling = evidence.inpaint(vae, x, visible, num_samples=num_samples, seed=seed)
    gain = torch.linalg.solve(covariance[visible][:, visible], covariance[visible][:, 1])
    right = bias[1] + (x[:, visible] - bias[visible]) @ gain
    variance = filling.spread[:, 1].square() / filling.estimate.ess.to(x)
    known = bool(filling.estimate.reliable.all())
    error = float(variance.sum().sqrt()) / len(x) if known else math.nan
    yield Line("inpaint", "mean of a hidden pixel", _mean(right), _mean(filling.mean[:, 1]), error)


def _entropy(reference: LinearGaussianVAE) -> float:
    vae = reference.vae
    covariance = vae.weight @ vae.weight.T + vae.scale.square() * torch.eye(5).to(vae.scale)
    return 2.5 * (1 + math.log(2 * math.pi)) + float(torch.logdet(covariance).detach()) / 2


def _mean(values: Tensor) -> float:
    return float(values.detach().mean())


def _error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(values.numel())


def _binomial(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count)


def _known(error: float | None) -> float:
    return math.nan if error is None else error
