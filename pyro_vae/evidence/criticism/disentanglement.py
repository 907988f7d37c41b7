"""Disentanglement scores for data whose factors are known."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.errors import check_count, check_number
from pyro_vae.evidence.estimates.diagnostics import active_units, units_of
from pyro_vae.system.randomness import own_randomness

#: Most numbers in one array; 64 MiB in float64.
MAX_ELEMENTS = 2**23


@dataclass(frozen=True)
class InformationGap:
    r"""The mutual information gap (MIG), between 0 and 1, higher is better.

    .. math:: \text{MIG} = \tfrac1F \textstyle\sum_k \frac{I(z_{j(k)}; v_k) - \max_{j \ne j(k)} I(z_j; v_k)}{H(v_k)}, \quad
        j(k) = \operatorname{argmax}_j I(z_j; v_k)

    where z_j is latent unit j of Z, v_k is factor k of F, I is the mutual information, and H the entropy. MIG is 1 if, for each
    factor, one unit determines the factor and no other unit has information about it. MIG is 0 if the two best units have the
    same information, as after a rotation of z by 45 degrees. A unit that encodes two factors does not by itself lower MIG.

    Attributes:
        value: MIG.
        std_error: Standard error over data: the N data and their draws of z are treated as a random sample. The delta method
            computes the error from the scatter of the terms whose means are I and H; the two best units of each factor are
            taken as known. The error from the draws of z alone would be smaller. Codes that are vectors have no draws, but
            still have the error from the data.
        gaps: Gap of each factor, shape ``(F,)``, float64, CPU; the mean of the gaps is MIG.
        information: :math:`I(z_j; v_k)`, nats, shape ``(Z, F)``, float64, CPU.
        entropy: :math:`H(v_k)`, nats, shape ``(F,)``, float64, CPU.
        num_data: Number of data, N.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, eq. 6.
    """

    value: float
    std_error: float
    gaps: Tensor
    information: Tensor
    entropy: Tensor
    num_data: int

    @property
    def shares(self) -> Tensor:
        """Information as a share of entropy, I(z_j; v_k) / H(v_k), ``(Z, F)``."""
        return self.information / self.entropy

    @property
    def sentence(self) -> str:
        """The score in one sentence."""
        return f"MIG {self.value:.3f} (error over data {self.std_error:.3f}), of {len(self.entropy)} factors."


@dataclass(frozen=True)
class FactorVAEScore:
    r"""The score of FactorVAE, between 0 and 1, higher is better.

    .. math:: d = \operatorname{argmin}_j \operatorname{Var}_L(z_j) / \operatorname{Var}(z_j)

    A vote draws one of F factors, k, then a value of this factor, then L data with this value. The vote goes to the latent unit
    d with the smallest variance over these L data, relative to the variance of the unit over all data. From training votes, a
    classifier learns the most frequent k for each d; the score is the accuracy of the classifier on test votes. A code without
    information scores 1/F on average. Unlike MIG, the score does not fall if a second unit also encodes a factor, as long as
    the first unit varies less.

    Attributes:
        value: Accuracy of the classifier.
        std_error: Standard error over votes; the data count as fixed.
        votes: Number of training votes that drew factor k and went to unit d, shape ``(Z, F)``, int64. Rows of inactive units
            are 0.
        num_data: Number of data, N.

    References:
        Kim, Mnih, "Disentangling by Factorising", 2018, section 4.
    """

    value: float
    std_error: float
    votes: Tensor
    num_data: int

    @property
    def sentence(self) -> str:
        """The score in one sentence."""
        chance = 1 / self.votes.shape[1]
        return f"FactorVAE score {self.value:.3f} (error {self.std_error:.3f}), where chance is {chance:.3f}."


@torch.no_grad()
def mutual_information_gap(
    codes: Tensor | TorchDistributionMixin,
    factors: Tensor,
    num_bins: int = 20,
    seed: int | None = None,
    max_elements: int = MAX_ELEMENTS,
) -> InformationGap:
    r"""Compute the mutual information gap of codes: distributions q(z|x) or vectors.

    .. math:: I(z_j; v_k) = \tfrac1N \textstyle\sum_n [\log q(z_{nj}|v_{nk}) - \log q(z_{nj})]

    where n runs over N data, z_j is latent unit j, and v_k is factor k. See :class:`InformationGap` for the gap itself.

    If the codes are distributions q(z|x), one z is drawn for each datum. The densities of this draw are computed under two
    mixtures: :math:`q(z_j) = \tfrac1N \sum_n q(z_j|x_n)`, and :math:`q(z_j|v_k)`, the mean of q(z_j|x_n) over the data with the
    same value v_k. The only error for these data comes from the draws. The result includes the noise of the code.

    If the codes are vectors, such as means of q(z|x), each unit has a histogram whose bins contain equal numbers of data. This
    ignores the noise of the code, so a unit that the model does not use may still score. I(z_j; v_k) is then too large by about
    (bins - 1) (values - 1) / (2 N); this bias nearly cancels in the gap.

    Args:
        codes: Distribution q(z|x) of all N data, with Z independent units, batch shape ``(N,)``, event shape ``(Z,)``; or
            vectors, shape ``(N, Z)``.
        factors: Values of the factors, shape ``(N, F)``, whole numbers.
        num_bins: Number of bins for each unit, if the codes are vectors; at least the number of values of a factor.
        seed: Seed of the draws; None: draws come from torch's generator.
        max_elements: Largest number of elements of an array; it bounds memory.

    Returns:
        MIG with its standard error, and the mutual informations and entropies in nats.

    Raises:
        ValueError: If shapes do not match, there is only one unit, a factor has only one value, units are dependent, or there
            are too few bins.
    """
    check_count("num_bins", num_bins, 2)
    check_count("max_elements", max_elements)
    units = None if isinstance(codes, Tensor) else _independent_units(codes)
    values = _factor_values(factors, codes if units is None else units.mean)
    with nullcontext() if seed is None else own_randomness(seed):
        terms = (
            _terms_of_vectors(codes, values, num_bins) if units is None else _terms_of_q(units, values, max_elements)
        )
    return _gap(terms, torch.stack([_self_information(v) for v in values], 1))


def _independent_units(q: TorchDistributionMixin) -> Distribution:
    """Return the units of q(z|x) as scalar distributions; refuse dependent units."""
    units = units_of(q)
    if units is None:
        raise ValueError(
            f"codes: expected vectors or q(z|x) with independent units, got {type(q).__name__} whose units depend on each "
            "other; pass the mean of q(z|x)."
        )
    return units


def _gap(terms: Tensor, self_information: Tensor) -> InformationGap:
    """Compute MIG from pointwise information and self-information.

    The shape of ``terms`` is ``(N, Z, F)``, that of ``self_information`` is ``(N, F)``.
    """
    information, entropy = terms.mean(0), self_information.mean(0)
    best = information.topk(2, 0)
    gaps = (best.values[0] - best.values[1]) / entropy
    columns = torch.arange(len(entropy))
    between = terms[:, best.indices[0], columns] - terms[:, best.indices[1], columns]
    each = ((between - gaps * (self_information - entropy)) / entropy).mean(1)  # delta method of a ratio of two means
    error = float(each.std()) / math.sqrt(len(each))
    return InformationGap(float(gaps.mean()), error, gaps, information, entropy, len(each))


@torch.no_grad()
def factor_vae_score(
    codes: Tensor,
    factors: Tensor,
    num_votes: int = 800,
    batch_size: int = 64,
    seed: int | None = None,
    threshold: float = 0.01,
) -> FactorVAEScore:
    r"""Compute the score of FactorVAE; see :class:`FactorVAEScore`.

    .. math:: d = \operatorname{argmin}_j \operatorname{Var}_L(z_j) / \operatorname{Var}(z_j)

    Args:
        codes: Means of q(z|x), shape ``(N, Z)``.
        factors: Values of the factors, shape ``(N, F)``, whole numbers.
        num_votes: Number of training votes; there are as many test votes.
        batch_size: Number of data in a vote, drawn with replacement from all data with the chosen value of the factor.
        seed: Seed of the votes; None: votes come from torch's generator.
        threshold: A unit whose variance over data is above this value is active. Inactive units, which the model does not use,
            get no vote.

    Returns:
        The score with its standard error, and the training votes.

    Raises:
        ValueError: If shapes do not match, a factor has only one value, or no unit varies.
    """
    check_count("num_votes", num_votes)
    check_count("batch_size", batch_size, 2)
    check_number("threshold", threshold, lambda v: math.isfinite(v) and v >= 0, "a number of at least 0")
    values = _factor_values(factors, codes, least=1)
    codes = codes.detach().cpu().double()
    active = active_units(codes, threshold)
    if not active.any():
        raise ValueError(
            f"codes: expected a unit with a variance above {threshold:g}, got none; lower threshold if the model uses its "
            "units."
        )
    codes = codes / codes.std(0).where(active, torch.ones(()))
    with nullcontext() if seed is None else own_randomness(seed):
        fixed = torch.randint(len(values), (2 * num_votes,))
        least = torch.stack([_least_varying(codes, values[k], batch_size, active) for k in fixed.tolist()])
    votes = torch.zeros(codes.shape[1], len(values), dtype=torch.int64)
    votes.index_put_((least[:num_votes], fixed[:num_votes]), torch.ones(num_votes, dtype=torch.int64), accumulate=True)
    share = float((votes.argmax(1)[least[num_votes:]] == fixed[num_votes:]).double().mean())
    return FactorVAEScore(share, math.sqrt(share * (1 - share) / num_votes), votes, len(codes))


def _least_varying(codes: Tensor, values: Tensor, batch_size: int, active: Tensor) -> Tensor:
    """Cast one vote for the active unit that varies least."""
    rows = (values == values[torch.randint(len(values), ())]).nonzero()[:, 0]
    chosen = rows[torch.randint(len(rows), (batch_size,))]
    return codes[chosen].var(0).where(active, torch.tensor(math.inf)).argmin()


def _factor_values(factors: Tensor, codes: Tensor, least: int = 2) -> list[Tensor]:
    """Renumber the values of each factor from 0 without gaps.

    Args:
        factors: Values of the factors, shape ``(N, F)``, whole numbers.
        codes: Codes of the same data, shape ``(N, Z)``.
        least: Smallest number Z of units that is allowed.

    Returns:
        Renumbered values of each factor: F tensors of shape ``(N,)``, int64, CPU.

    Raises:
        ValueError: If shapes do not match, a code is not finite, or a factor has only one value.
    """
    if codes.dim() != 2 or codes.shape[1] < least:
        raise ValueError(
            f"codes: expected shape (N, Z) with at least {least} unit{'s' * (least > 1)}, got {tuple(codes.shape)}; a "
            "gap needs a second unit."
        )
    if factors.dim() != 2 or factors.is_floating_point() or len(factors) != len(codes):
        raise ValueError(
            f"factors: expected whole numbers of shape ({len(codes)}, F), a row for each code, got {tuple(factors.shape)} of "
            f"{factors.dtype}; number the values of each factor."
        )
    if not bool(torch.isfinite(codes).all()):
        raise ValueError("codes: expected finite numbers, got NaN or infinity; leave such data out.")
    values = [column.cpu().unique(return_inverse=True)[1] for column in factors.unbind(1)]
    for k, column in enumerate(values):
        if not len(column) or int(column.max()) == 0:
            raise ValueError(
                f"factors: expected at least two values of each factor, got one in column {k}; remove the column."
            )
    return values


def _self_information(values: Tensor) -> Tensor:
    """Compute -log p(v) for each datum's value v of one factor.

    The shape is ``(N,)``; the mean is the entropy H(v).
    """
    return -(values.bincount().double() / len(values)).log()[values]


def _terms_of_vectors(codes: Tensor, values: list[Tensor], num_bins: int) -> Tensor:
    """Pointwise information of each datum from vectors, ``(N, Z, F)``, nats, float64.

    For each unit and factor, this is log [p(bin, v) / (p(bin) p(v))], where v is the factor's value and the unit's bins contain
    equal numbers of data.
    """
    most = max(int(v.max()) + 1 for v in values)
    if num_bins < most:
        raise ValueError(
            f"num_bins: expected at least {most}, the number of values of a factor, got {num_bins}; pass at least {most}."
        )
    codes = codes.detach().cpu().double()
    edges = torch.quantile(codes, torch.arange(1, num_bins, dtype=torch.float64) / num_bins, 0).T.contiguous()
    bins = torch.searchsorted(edges, codes.T.contiguous(), right=True)  # (Z, N)
    return torch.stack([torch.stack([_pointwise_information(b, v) for v in values], -1) for b in bins], 1)


def _pointwise_information(bins: Tensor, values: Tensor) -> Tensor:
    both = bins * (int(values.max()) + 1) + values
    counts = [index.bincount()[index].double() for index in (both, bins, values)]
    return (counts[0] * len(bins) / (counts[1] * counts[2])).log()


def _terms_of_q(units: Distribution, values: list[Tensor], max_elements: int) -> Tensor:
    """Pointwise information of each datum from q(z|x), ``(N, Z, F)``, nats, float64.

    For unit j and factor k, this is log q(z_j|v_k) - log q(z_j) at one draw of z.
    """
    z = units.sample()  # (N, Z)
    num, width = z.shape
    members = [torch.nn.functional.one_hot(v).double() for v in values]
    shares = [one.mean(0) for one in members]
    parts = []
    for rows in torch.arange(num).split(max(1, max_elements // (num * width))):
        log_q = units.log_prob(z[rows.to(z.device), None]).cpu().double().movedim(2, 1)  # (S, Z, N)
        largest = log_q.amax(-1, keepdim=True)
        density = (log_q - largest).exp()
        whole = density.mean(-1)
        terms = []
        for v, one, share in zip(values, members, shares, strict=True):
            given = density @ (one / (num * share))  # (S, Z, V)
            own = given.gather(-1, v[rows, None, None].expand(-1, width, 1))[..., 0]
            terms.append((own / whole).log())
        parts.append(torch.stack(terms, -1))
    return torch.cat(parts)
