"""Does each latent unit hold one factor of the data? Scores for data whose factors are known."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import check_count, check_number
from pyro_vae.evidence.estimates.diagnostics import active_units, units_of
from pyro_vae.system.randomness import own_randomness

#: Numbers in the largest array: 64 MB in float64.
MAX_ELEMENTS = 2**23


@dataclass(frozen=True)
class InformationGap:
    r"""The mutual information gap (MIG), between 0 and 1, higher is better.

    .. math:: \text{MIG} = \tfrac1F \textstyle\sum_k \frac{I(z_{j(k)}; v_k) - \max_{j \ne j(k)} I(z_j; v_k)}{H(v_k)}, \quad
        j(k) = \operatorname{argmax}_j I(z_j; v_k)

    1 where each factor v_k can be told from one unit and no other unit says anything of it; 0 where the two best units say
    the same of it, as of any rotation by 45 degrees. That a unit holds two factors costs nothing by itself.

    Attributes:
        value: MIG.
        std_error: Its standard error over data, as of a random sample with its draws of z: how far other N data would move it,
            by the scatter of the terms of which I and H are means (the delta method). The two units of each factor are taken
            as known. Draws alone move it by less, and vectors, of which nothing is drawn, have this error too.
        gaps: The terms of the mean, shape ``(F,)``, float64, CPU.
        information: :math:`I(z_j; v_k)`, nats, shape ``(Z, F)``, float64, CPU.
        entropy: :math:`H(v_k)`, nats, shape ``(F,)``, float64, CPU.
        num_data: N.

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
        """How much of each factor each unit says: I(z_j; v_k) / H(v_k), shape ``(Z, F)``."""
        return self.information / self.entropy

    @property
    def sentence(self) -> str:
        """The score in one plain sentence."""
        return f"MIG {self.value:.3f} (error over data {self.std_error:.3f}), of {len(self.entropy)} factors."


@dataclass(frozen=True)
class FactorVAEScore:
    r"""The score of FactorVAE: how often the unit that varies least tells which factor stood still.

    One vote: a factor k and a value of it are drawn, then L data that have it; d is the unit whose variance among their
    codes, over that among all codes, is the smallest. The classifier that knows of each d the most frequent k in some
    votes is right in ``value`` of other votes. 1 is best; a code that says nothing has 1/F in the mean. Unlike MIG it
    does not mind that a second unit knows a factor as well, as long as the first stands stiller.

    Attributes:
        value: Share of the votes that are told rightly.
        std_error: Its standard error, of so many votes on these data.
        votes: How often the least varying unit was d when factor k stood still, shape ``(Z, F)``, int64: the votes that
            the classifier knows. Rows of inactive units are 0.
        num_data: N.

    References:
        Kim, Mnih, "Disentangling by Factorising", 2018, section 4.
    """

    value: float
    std_error: float
    votes: Tensor
    num_data: int

    @property
    def sentence(self) -> str:
        """The score in one plain sentence."""
        chance = 1 / self.votes.shape[1]
        return f"FactorVAE score {self.value:.3f} (error {self.std_error:.3f}), where chance is {chance:.3f}."


@torch.no_grad()
def mutual_information_gap(
    codes: Any, factors: Tensor, num_bins: int = 20, seed: int | None = None, max_elements: int = MAX_ELEMENTS
) -> InformationGap:
    r"""MIG of codes, from q(z|x) itself or from vectors; see :class:`InformationGap`.

    Of q(z|x), with one draw of each datum scored under the mixtures :math:`q(z_j) = \tfrac1N \sum_n q(z_j|x_n)` and
    :math:`q(z_j|v_k)`, that of the data with this value: exact for these data but for the draws, and noise in the code counts
    as such. Of vectors, such as means, by a histogram of each unit with bins of equal numbers of data: whatever noise there
    would be is overlooked, so that a unit that the model does not use may still score. I(z_j; v_k) of N data is too large
    by about (bins - 1) (values - 1) / (2 N) in a histogram; in the gap that nearly cancels.

    Args:
        codes: q(z|x) of all N data with independent units, batch shape ``(N,)``, event shape ``(Z,)``, or vectors, shape
            ``(N, Z)``.
        factors: Which value of each factor, shape ``(N, F)``, whole numbers.
        num_bins: Bins of each unit, for vectors: no fewer than values of a factor.
        seed: Seed of the draws; None: from torch's generator.
        max_elements: Numbers in the largest array, which bounds memory.

    Raises:
        ValueError: If shapes do not fit, there is one unit only, a factor has one value only, units depend on each other,
            or bins are too few.
    """
    check_count("num_bins", num_bins, 2)
    check_count("max_elements", max_elements)
    units = None if isinstance(codes, Tensor) else units_of(codes)
    if units is None and not isinstance(codes, Tensor):
        raise ValueError(
            f"codes: expected vectors or q(z|x) with independent units, got {type(codes).__name__} whose units depend on each "
            "other; pass its mean."
        )
    values = _numbered(factors, codes if units is None else units.mean)
    surprise = torch.stack([_surprise(v) for v in values], 1)  # (N, F)
    entropy = surprise.mean(0)
    with nullcontext() if seed is None else own_randomness(seed):
        terms = _from_bins(codes, values, num_bins) if units is None else _from_density(units, values, max_elements)
    information = terms.mean(0)  # (Z, F)
    best = information.topk(2, 0)
    gaps = (best.values[0] - best.values[1]) / entropy
    columns = torch.arange(len(entropy))
    between = terms[:, best.indices[0], columns] - terms[:, best.indices[1], columns]
    each = ((between - gaps * (surprise - entropy)) / entropy).mean(1)  # of a ratio of two means
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
    """The score of FactorVAE, of the means of q(z|x); see :class:`FactorVAEScore`.

    Args:
        codes: Shape ``(N, Z)``.
        factors: Which value of each factor, shape ``(N, F)``, whole numbers.
        num_votes: Votes that the classifier knows, and votes that it is tried on.
        batch_size: L, data in a vote, drawn with replacement from those with the value.
        seed: Seed of the votes; None: from torch's generator.
        threshold: Variance of a unit over the data above which it counts; others, which the model does not use, have no vote.

    Raises:
        ValueError: If shapes do not fit, a factor has one value only, or no unit varies.
    """
    check_count("num_votes", num_votes)
    check_count("batch_size", batch_size, 2)
    check_number("threshold", threshold, lambda v: math.isfinite(v) and v >= 0, "a number of at least 0")
    values = _numbered(factors, codes, least=1)
    codes = codes.detach().cpu().double()
    active = active_units(codes, threshold)
    if not active.any():
        raise ValueError(
            f"codes: expected a unit that varies, got none with a variance above {threshold:g}; the model uses no unit, or "
            "lower threshold."
        )
    codes = codes / codes.std(0).where(active, torch.ones(()))
    with nullcontext() if seed is None else own_randomness(seed):
        fixed = torch.randint(len(values), (2 * num_votes,))
        least = torch.stack([_vote(codes, values[k], batch_size, active) for k in fixed.tolist()])
    votes = torch.zeros(codes.shape[1], len(values), dtype=torch.int64)
    votes.index_put_((least[:num_votes], fixed[:num_votes]), torch.ones(num_votes, dtype=torch.int64), accumulate=True)
    share = float((votes.argmax(1)[least[num_votes:]] == fixed[num_votes:]).double().mean())
    return FactorVAEScore(share, math.sqrt(share * (1 - share) / num_votes), votes, len(codes))


def _vote(codes: Tensor, values: Tensor, batch_size: int, active: Tensor) -> Tensor:
    """The active unit that varies least among data that have the value of a random one of them; 0-dim."""
    rows = (values == values[torch.randint(len(values), ())]).nonzero()[:, 0]
    chosen = rows[torch.randint(len(rows), (batch_size,))]
    return codes[chosen].var(0).where(active, torch.tensor(math.inf)).argmin()


def _numbered(factors: Tensor, codes: Tensor, least: int = 2) -> list[Tensor]:
    """The values of each factor, counted from 0 without gaps, shape ``(N,)`` each, CPU."""
    if codes.dim() != 2 or codes.shape[1] < least:
        raise ValueError(
            f"codes: expected shape (N, Z) with at least {least} unit{'s' * (least > 1)}, got {tuple(codes.shape)}; between "
            "one unit and no other there is no gap."
        )
    if factors.dim() != 2 or factors.is_floating_point() or len(factors) != len(codes):
        raise ValueError(
            f"factors: expected whole numbers of shape ({len(codes)}, F), a row for each code, got {tuple(factors.shape)} of "
            f"{factors.dtype}."
        )
    if not bool(torch.isfinite(codes).all()):
        raise ValueError("codes: expected finite numbers, got NaN or infinity; drop such data.")
    found = [column.cpu().unique(return_inverse=True)[1] for column in factors.unbind(1)]
    for k, column in enumerate(found):
        if not len(column) or int(column.max()) == 0:
            raise ValueError(f"factors: expected at least two values of each, got one in column {k}; leave it out.")
    return found


def _surprise(values: Tensor) -> Tensor:
    """-log p(v) of each datum's value, shape ``(N,)``: its mean is the entropy."""
    return -(values.bincount().double() / len(values)).log()[values]


def _from_bins(codes: Tensor, values: list[Tensor], num_bins: int) -> Tensor:
    """Pointwise information, log p(bin, v) / (p(bin) p(v)), of each datum, shape ``(N, Z, F)``, nats, float64."""
    most = max(int(v.max()) + 1 for v in values)
    if num_bins < most:
        raise ValueError(
            f"num_bins: expected at least the {most} values of a factor, which fewer bins cannot tell apart, got {num_bins}."
        )
    codes = codes.detach().cpu().double()
    edges = torch.quantile(codes, torch.arange(1, num_bins, dtype=torch.float64) / num_bins, 0).T.contiguous()
    bins = torch.searchsorted(edges, codes.T.contiguous(), right=True)  # (Z, N)
    return torch.stack([torch.stack([_pointwise(b, v) for v in values], -1) for b in bins], 1)


def _pointwise(bins: Tensor, values: Tensor) -> Tensor:
    both = bins * (int(values.max()) + 1) + values
    counts = [index.bincount()[index].double() for index in (both, bins, values)]
    return (counts[0] * len(bins) / (counts[1] * counts[2])).log()


def _from_density(units: Any, values: list[Tensor], max_elements: int) -> Tensor:
    """Pointwise information, log q(z_j|v_k) - log q(z_j), at a draw of each datum, shape ``(N, Z, F)``, nats, float64."""
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
        found = []
        for v, one, share in zip(values, members, shares, strict=True):
            given = density @ (one / (num * share))  # (S, Z, V)
            own = given.gather(-1, v[rows, None, None].expand(-1, width, 1))[..., 0]
            found.append((own / whole).log())
        parts.append(torch.stack(found, -1))
    return torch.cat(parts)
