r"""What the codes of a data set say together: the aggregate posterior :math:`q(z) = \tfrac1N \sum_n q(z|x_n)`."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_vae.errors import check_count, clear_data_errors
from pyro_vae.evidence.estimates.diagnostics import units_of
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.data_plate import find_data_plate
from pyro_vae.inference.program.sites import base_name, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.traces import Program
from pyro_vae.system.randomness import own_randomness

#: Numbers in the largest array, draws x data x units: 64 MB in float32.
MAX_ELEMENTS = 2**24


@dataclass(frozen=True)
class AggregatePosterior:
    r"""The rate of N data taken apart; means over them, nats, each with its Monte Carlo standard error.

    .. math:: \underbrace{E_n\, KL(q(z|x_n) \| p(z))}_{\text{rate}} = I(x; z) + KL(q(z) \| p(z)), \qquad
        KL(q(z) \| p(z)) = \underbrace{KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)}_{\text{total correlation}}
        + \textstyle\sum_j KL(q(z_j) \| p(z_j))

    the second for a prior of independent units. Both hold draw by draw, for the estimates too. q(z) is the mixture of
    these N codes, summed in full: nothing is biased for these data. I grows with N, in the mean, and the rate does not: for
    the population I is at least this and KL(q(z) || p(z)) at most this, by far where I is near its ceiling log N; the total
    correlation is then mostly that of N islands. The errors count the scatter between data as well: they are rather too large.

    Attributes:
        mutual_information: :math:`I(x; z) = E_{q(z|x_n)}[\log q(z|x_n) - \log q(z)]`, between 0 and ``ceiling``.
        mutual_information_error: Its standard error.
        ceiling: log N, which I(x; z) of N data cannot exceed: near it, it says that no two codes overlap, and no more.
        marginal_kl: :math:`KL(q(z) \| p(z))`.
        marginal_kl_error: Its standard error.
        rate: Their sum.
        rate_error: Its standard error.
        total_correlation: :math:`KL(q(z) \| \prod_j q(z_j))`; None where q(z|x) has no marginals in closed form.
        total_correlation_error: Its standard error, or None.
        dimension_wise_kl: :math:`\sum_j KL(q(z_j) \| p(z_j))`; None there, or where the prior's units depend on each other.
        dimension_wise_kl_error: Its standard error, or None.
        kl_per_unit: :math:`KL(q(z_j) \| p(z_j))`, shape ``(Z,)``, float64, CPU; None where their sum is.
        num_samples: Draws from q(z).
        num_data: N.

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
        """I(x; z) with its ceiling, in one plain sentence."""
        said = (
            f"I(x; z) = {self.mutual_information:.2f} nats (error {self.mutual_information_error:.2f}), of at most "
            f"log {self.num_data} = {self.ceiling:.2f}"
        )
        if self.num_data > 1 and self.ceiling - self.mutual_information < 0.1:
            return f"{said}: the codes of these data do not overlap, and more data would show more."
        return f"{said}."


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
    r"""Take the rate of a data set apart, from draws of its aggregate posterior; see :class:`AggregatePosterior`.

    Every draw is scored under the code of every datum: num_samples x N densities, exact for these data. Give all of
    them at once: the values belong to the set, and those of batches have no mean that does.

    Args:
        model: A Pyro model with one latent site, in the data plate, whose prior is the same for all data.
        guide: Its guide.
        *args: What both take, with all N data.
        num_samples: Draws from q(z), at least 2: of each datum the same number, up to one.
        seed: Seed of the draws; None: from torch's generator.
        plate: Name of the data plate, where several enclose every site.
        max_elements: Numbers in the largest array, which bounds memory.
        **kwargs: Likewise.

    Returns:
        I(x; z), KL(q(z) || p(z)) and, where units have marginals, the total correlation and dimension-wise KL.

    Raises:
        ValueError: If there is not one latent site, it is a Delta or lies in a further plate, the prior depends on the
            data, or the program has no data plate.
    """
    with torch.no_grad(), nullcontext() if seed is None else own_randomness(seed):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        check_match(model_trace, guide_trace)
        size = find_data_plate(model_trace, guide_trace, plate).size
        sites = [(n, s) for n, s in sample_sites(guide_trace) if not (s["is_observed"] or is_auxiliary_loss(s))]
        if len(sites) != 1:
            raise ValueError(
                f"aggregate_posterior: expected one latent site, got {len(sites)}: {', '.join(sorted(n for n, _ in sites))}; "
                "join them into one vector."
            )
        ((name, site),) = sites
        if site["fn"].batch_shape != (size,):
            raise ValueError(
                f"latent site {name!r}: expected in the data plate alone, batch shape ({size},), got "
                f"{tuple(site['fn'].batch_shape)}; make what is in further plates its event by to_event."
            )
        return aggregate(site["fn"], model_trace.nodes[name]["fn"], num_samples, max_elements)


@torch.no_grad()
def aggregate(q: Any, p: Any, num_samples: int = 2000, max_elements: int = MAX_ELEMENTS) -> AggregatePosterior:
    """The same for the codes themselves, where they are at hand.

    Args:
        q: The N codes q(z|x_n), batch shape ``(N,)``, event shape ``(Z,)`` or ``()``.
        p: The prior, the same for all data, event shape likewise, batch shape ``()`` or ``(N,)``.
        num_samples: Draws from q(z), at least 2, from torch's generator.
        max_elements: Numbers in the largest array.

    Raises:
        ValueError: If q is a Delta or has another shape, p depends on the data, or a number is too small.
    """
    check_count("num_samples", num_samples, least=2)
    check_count("max_elements", max_elements)
    if len(q.batch_shape) != 1 or len(q.event_shape) > 1 or base_name(q) == "Delta":
        raise ValueError(
            f"q: expected codes with a density, batch shape (N,) and one vector each, got {base_name(q)} with batch shape "
            f"{tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}."
        )
    (num,) = q.batch_shape
    rounds = -(-num_samples // num)
    z = q.sample((rounds,))  # (S, N, ...)
    _check_prior(p, z, num)
    rows = torch.cat([torch.arange((rounds - 1) * num), (rounds - 1) * num + torch.randperm(num)])[:num_samples]
    rows = rows.to(z.device)
    given, prior = (fn.log_prob(z).expand(rounds, num).flatten()[rows].cpu().double() for fn in (q, p))
    prior_units = _per_unit(p, z)
    together, units = _mixture(q, z.flatten(0, 1)[rows], max_elements)
    terms = {"mutual_information": given - together, "marginal_kl": together - prior, "rate": given - prior}
    per_unit = None
    if units is not None:
        terms["total_correlation"] = together - units.sum(-1)
        if prior_units is not None:
            per_unit = units - prior_units.expand(rounds, num, -1).flatten(0, 1)[rows].cpu().double()
            terms["dimension_wise_kl"] = per_unit.sum(-1)
    values: dict[str, float | None] = {}
    for name in ("mutual_information", "marginal_kl", "rate", "total_correlation", "dimension_wise_kl"):
        term = terms.get(name)
        values[name] = None if term is None else float(term.mean())
        values[f"{name}_error"] = None if term is None else float(term.std()) / math.sqrt(num_samples)
    whole: dict[str, Any] = values
    found = None if per_unit is None else per_unit.mean(0)
    return AggregatePosterior(**whole, ceiling=math.log(num), kl_per_unit=found, num_samples=num_samples, num_data=num)


def _check_prior(p: Any, z: Tensor, num: int) -> None:
    """Refuse a prior that is another for another datum: p(z) is then no one distribution."""
    event = z.shape[2:]
    for place in (0, num - 1):
        scores = p.log_prob(z[0, place].expand(num, *event))
        if not torch.allclose(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(
                "aggregate_posterior: expected a prior that is the same for all data, got one that depends on them; take the "
                "data of one condition alone."
            )


def _units(fn: Distribution) -> Distribution | None:
    """The marginals of the units as a batch of scalar distributions; None where they have no closed form."""
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(fn.loc, fn.variance.sqrt(), validate_args=False)
    return units_of(fn)


def _per_unit(p: Any, z: Tensor) -> Tensor | None:
    """log p of each unit, shape ``(..., Z)``; None where the units depend on each other."""  # noqa: D403
    if not p.event_shape:
        return p.log_prob(z)[..., None]
    units = units_of(p)
    return None if units is None else units.log_prob(z)


def _mixture(q: Any, z: Tensor, max_elements: int) -> tuple[Tensor, Tensor | None]:
    """log q(z), shape ``(M,)``, and log q(z_j), shape ``(M, Z)`` or None, at M draws; float64, CPU."""  # noqa: D403
    (num,), scalar = q.batch_shape, not q.event_shape
    units = None if scalar else _units(q)
    independent = units is not None and units_of(q) is not None
    together, apart = [], []
    for part in z.split(max(1, max_elements // (num * max(1, z[0].numel())))):
        each = units.log_prob(part[:, None]) if units is not None else None  # (M, N, Z)
        joint = each.sum(-1) if independent and each is not None else q.log_prob(part[:, None])  # (M, N)
        together.append(_log_mean_exp(joint))
        if scalar or each is not None:
            apart.append(_log_mean_exp(joint[..., None] if each is None else each))
    return torch.cat(together), torch.cat(apart) if apart else None


def _log_mean_exp(values: Tensor) -> Tensor:
    return (values.logsumexp(1) - math.log(values.shape[1])).cpu().double()
