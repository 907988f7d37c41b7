"""The aggregate posterior q(z): it splits the rate into parts."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_vae.errors import check_count, clear_data_errors
from pyro_vae.evidence.estimates.diagnostics import units_of
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.data_plate import find_data_plate
from pyro_vae.inference.program.sites import base_name, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.traces import Program
from pyro_vae.system.randomness import own_randomness

#: Most numbers in one array, draws x data x units; 64 MiB in float32.
MAX_ELEMENTS = 2**24


@dataclass(frozen=True)
class AggregatePosterior:
    r"""The parts of the mean rate of N data, nats per datum.

    .. math:: \underbrace{E_n\, KL(q(z|x_n) \| p(z))}_{\text{rate}} = I(x; z) + KL(q(z) \| p(z)), \qquad
        KL(q(z) \| p(z)) = \underbrace{KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)}_{\text{total correlation}}
        + \textstyle\sum_j KL(q(z_j) \| p(z_j))

    where :math:`q(z) = \tfrac1N \sum_n q(z|x_n)` is the aggregate posterior, and q(z|x_n) is the code of datum n. The second
    equation needs a prior with independent units. Both equations hold for each draw, and so for the estimates. q(z) is a mean
    over all N codes, so the estimates are unbiased for these N data.

    As estimates for the population, ``mutual_information`` is too low and ``marginal_kl`` too high: on average, I(x; z) grows
    with N, but the rate does not. The bias is large if I(x; z) is near the ceiling log N; the total correlation then mostly
    describes N separate codes. The errors are Monte Carlo standard errors. They include the scatter between data, and so are
    somewhat too large.

    Attributes:
        mutual_information: :math:`I(x; z) = E_{q(z|x_n)}[\log q(z|x_n) - \log q(z)]`, between 0 and ``ceiling``.
        mutual_information_error: Standard error of ``mutual_information``.
        ceiling: log N, the largest I(x; z) of N data. An I(x; z) near the ceiling shows only that no two codes overlap.
        marginal_kl: :math:`KL(q(z) \| p(z))`.
        marginal_kl_error: Standard error of ``marginal_kl``.
        rate: ``mutual_information + marginal_kl``.
        rate_error: Standard error of ``rate``.
        total_correlation: :math:`KL(q(z) \| \prod_j q(z_j))`; None if q(z|x) has no marginals in closed form.
        total_correlation_error: Standard error of ``total_correlation``, or None.
        dimension_wise_kl: :math:`\sum_j KL(q(z_j) \| p(z_j))`; None if ``total_correlation`` is None or the prior's units are
            dependent.
        dimension_wise_kl_error: Standard error of ``dimension_wise_kl``, or None.
        kl_per_unit: :math:`KL(q(z_j) \| p(z_j))`, shape ``(Z,)``, float64, CPU; None if ``dimension_wise_kl`` is None.
        num_samples: Number of draws from q(z).
        num_data: Number of data, N.

    References:
        Hoffman, Johnson, "ELBO Surgery", 2016; Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in
        Variational Autoencoders", 2018, eq. 2.
    """

    mutual_information: float
    mutual_information_error: float
    ceiling: float
    marginal_kl: float
    marginal_kl_error: float
    rate: float
    rate_error: float
    total_correlation: float | None
    total_correlation_error: float | None
    dimension_wise_kl: float | None
    dimension_wise_kl_error: float | None
    kl_per_unit: Tensor | None
    num_samples: int
    num_data: int

    @property
    def sentence(self) -> str:
        """Describe I(x; z) and its ceiling in one sentence."""
        text = (
            f"I(x; z) = {self.mutual_information:.2f} nats (error {self.mutual_information_error:.2f}), of at most "
            f"log {self.num_data} = {self.ceiling:.2f}"
        )
        if self.num_data > 1 and self.ceiling - self.mutual_information < 0.1:
            return f"{text}: the codes of these data do not overlap, and more data would show more."
        return f"{text}."


@clear_data_errors
def aggregate_posterior(
    model: Program,
    guide: Program,
    *args: object,
    num_samples: int = 2000,
    seed: int | None = None,
    plate: str | None = None,
    max_elements: int = MAX_ELEMENTS,
    **kwargs: object,
) -> AggregatePosterior:
    r"""Split the rate of a data set with the aggregate posterior.

    .. math:: E_n\, KL(q(z|x_n) \| p(z)) = I(x; z) + KL(q(z) \| p(z))

    See :class:`AggregatePosterior` for the parts and their biases. The density of every draw is computed under the code of
    every datum: ``num_samples`` * N densities. Pass all data at once: the parts belong to the whole data set and are not means
    over batches.

    Args:
        model: A Pyro model with a single latent site; the site is in the data plate, and its prior is the same for all data.
        guide: The guide of the model.
        *args: Positional arguments of model and guide, with all N data.
        num_samples: Number of draws from q(z), at least 2, spread evenly over the codes.
        seed: Seed of the draws; None: draws come from torch's generator.
        plate: Name of the data plate, if several plates enclose every site.
        max_elements: Largest number of elements of an array; it bounds memory.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        I(x; z), KL(q(z) || p(z)) and, if units have marginals, the total correlation and dimension-wise KL.

    Raises:
        ValueError: If the guide has no latent site or several, the site's distribution is a Delta, the site lies in a further
            plate, the prior depends on the data, or the program has no data plate.
    """
    with torch.no_grad(), nullcontext() if seed is None else own_randomness(seed):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        check_match(model_trace, guide_trace)
        name = _latent_site(guide_trace, find_data_plate(model_trace, guide_trace, plate).size)
        return aggregate(guide_trace.nodes[name]["fn"], model_trace.nodes[name]["fn"], num_samples, max_elements)


def _latent_site(guide_trace: Trace, size: int) -> str:
    """Return the name of the only latent site.

    Raises:
        ValueError: If there are several latent sites, or the site lies in a plate besides the data plate.
    """
    names = [n for n, site in sample_sites(guide_trace) if not (site["is_observed"] or is_auxiliary_loss(site))]
    if len(names) != 1:
        raise ValueError(
            f"aggregate_posterior: expected one latent site, got {len(names)}: {', '.join(sorted(names))}; join them into "
            "one vector."
        )
    shape = guide_trace.nodes[names[0]]["fn"].batch_shape
    if shape != (size,):
        raise ValueError(
            f"latent site {names[0]!r}: expected batch shape ({size},), the data plate alone, got {tuple(shape)}; move the "
            "other dimensions into the event by to_event."
        )
    return names[0]


@torch.no_grad()
def aggregate(
    q: TorchDistributionMixin,
    p: TorchDistributionMixin,
    num_samples: int = 2000,
    max_elements: int = MAX_ELEMENTS,
) -> AggregatePosterior:
    """Split the rate of given codes; see :class:`AggregatePosterior`.

    Args:
        q: The N codes q(z|x_n), batch shape ``(N,)``, event shape ``(Z,)`` or ``()``.
        p: The prior, the same for all data, with the event shape of q and batch shape ``()`` or ``(N,)``.
        num_samples: Number of draws from q(z), at least 2, from torch's generator.
        max_elements: Largest number of elements of an array.

    Returns:
        I(x; z), KL(q(z) || p(z)) and, if units have marginals, the total correlation and dimension-wise KL.

    Raises:
        ValueError: If q is a Delta or has the wrong shape, p depends on the data, or a number is too small.
    """
    check_count("num_samples", num_samples, least=2)
    check_count("max_elements", max_elements)
    _check_codes(q)
    (num,) = q.batch_shape
    rounds = -(-num_samples // num)
    z = q.sample((rounds,))  # (S, N, ...)
    _check_prior(p, z, num)
    rows = torch.cat([torch.arange((rounds - 1) * num), (rounds - 1) * num + torch.randperm(num)])[:num_samples]
    rows = rows.to(z.device)
    log_q, log_p = (fn.log_prob(z).expand(rounds, num).flatten()[rows].cpu().double() for fn in (q, p))
    log_p_units = _log_prob_of_units(p, z)
    if log_p_units is not None:
        log_p_units = log_p_units.expand(rounds, num, -1).flatten(0, 1)[rows].cpu().double()
    log_mixture, log_mixture_units = _log_mixture(q, z.flatten(0, 1)[rows], max_elements)
    return _split_rate(log_q, log_p, log_p_units, log_mixture, log_mixture_units, num)


def _mean(term: Tensor) -> tuple[float, float]:
    """Return the mean over draws and the standard error of this mean."""
    return float(term.mean()), float(term.std()) / math.sqrt(len(term))


def _split_rate(
    log_q: Tensor,
    log_p: Tensor,
    log_p_units: Tensor | None,
    log_mixture: Tensor,
    log_mixture_units: Tensor | None,
    num_data: int,
) -> AggregatePosterior:
    """Compute the parts of the rate from log densities at M draws."""
    information, marginal, rate = _mean(log_q - log_mixture), _mean(log_mixture - log_p), _mean(log_q - log_p)
    correlation: tuple[float, float] | tuple[None, None] = (None, None)
    dimension_wise, kl_per_unit = correlation, None
    if log_mixture_units is not None:
        correlation = _mean(log_mixture - log_mixture_units.sum(-1))
        if log_p_units is not None:
            per_unit = log_mixture_units - log_p_units
            dimension_wise, kl_per_unit = _mean(per_unit.sum(-1)), per_unit.mean(0)
    return AggregatePosterior(
        mutual_information=information[0],
        mutual_information_error=information[1],
        ceiling=math.log(num_data),
        marginal_kl=marginal[0],
        marginal_kl_error=marginal[1],
        rate=rate[0],
        rate_error=rate[1],
        total_correlation=correlation[0],
        total_correlation_error=correlation[1],
        dimension_wise_kl=dimension_wise[0],
        dimension_wise_kl_error=dimension_wise[1],
        kl_per_unit=kl_per_unit,
        num_samples=len(log_q),
        num_data=num_data,
    )


def _check_codes(q: TorchDistributionMixin) -> None:
    """Refuse a distribution q without a density or with a wrong shape."""
    if len(q.batch_shape) != 1 or len(q.event_shape) > 1 or base_name(q) == "Delta":
        raise ValueError(
            f"q: expected codes with a density, batch shape (N,) and one vector each, got {base_name(q)} with batch shape "
            f"{tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}."
        )


def _check_prior(p: TorchDistributionMixin, z: Tensor, num: int) -> None:
    """Refuse a prior that is not the same for all data."""
    event = z.shape[2:]
    for place in (0, num - 1):
        scores = p.log_prob(z[0, place].expand(num, *event))
        if not torch.allclose(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(
                "aggregate_posterior: expected the same prior for all data, got a prior that depends on the data; use the data "
                "of one condition only."
            )


def _marginals(fn: Distribution) -> Distribution | None:
    """Return the units' marginals as scalar distributions; None without closed form."""
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(fn.loc, fn.variance.sqrt(), validate_args=False)
    return units_of(fn)


def _log_prob_of_units(p: TorchDistributionMixin, z: Tensor) -> Tensor | None:
    """Return log densities of the units, ``(..., Z)``; None for dependent units."""
    if not p.event_shape:
        return p.log_prob(z)[..., None]
    units = units_of(p)
    return None if units is None else units.log_prob(z)


def _log_mixture(q: TorchDistributionMixin, z: Tensor, max_elements: int) -> tuple[Tensor, Tensor | None]:
    r"""Compute log densities of the aggregate posterior and of its marginals.

    .. math:: \log q(z) = \log \tfrac1N \textstyle\sum_n q(z|x_n)

    Args:
        q: The N codes q(z|x_n).
        z: M draws, shape ``(M, Z)`` or ``(M,)``.
        max_elements: Largest number of elements of an array.

    Returns:
        log q(z), shape ``(M,)``, and log q(z_j), shape ``(M, Z)`` or None; float64, CPU.
    """
    (num,), scalar = q.batch_shape, not q.event_shape
    units = None if scalar else _marginals(q)
    independent = units is not None and units_of(q) is not None
    joints, marginals = [], []
    for part in z.split(max(1, max_elements // (num * max(1, z[0].numel())))):
        each = units.log_prob(part[:, None]) if units is not None else None  # (M, N, Z)
        joint = each.sum(-1) if independent and each is not None else q.log_prob(part[:, None])  # (M, N)
        joints.append(_log_mean_exp(joint))
        if scalar or each is not None:
            marginals.append(_log_mean_exp(joint[..., None] if each is None else each))
    return torch.cat(joints), torch.cat(marginals) if marginals else None


def _log_mean_exp(values: Tensor) -> Tensor:
    return (values.logsumexp(1) - math.log(values.shape[1])).cpu().double()
