"""Importance sampling with a number of draws chosen for each datum."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.noise_streams import PILOT, NoiseStreams
from pyro_vae.evidence.importance.sampler import Proposal, Sampler
from pyro_vae.inference.program.traces import Args, Kwargs
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.log_weights import ProposalDraws

#: Draws of the pilot, unless ``max_samples`` is smaller.
PILOT_SAMPLES = 500
#: Smallest number of draws: enough to fit a Pareto tail, with a threshold on Pareto k above 1/2.
MIN_SAMPLES = 128

T = TypeVar("T")


def adaptive(
    sampler: Sampler,
    proposal: Proposal,
    args: Args,
    kwargs: Kwargs,
    data_ids: Tensor | None,
    target_se: float,
    max_samples: int,
) -> Estimate:
    r"""Estimate log p(x) with a standard error of about ``target_se``.

    .. math:: K_i = \Big\lceil \widehat{\mathrm{Var}}(w_i) / (\hat p(x_i)\ \mathrm{se})^2 \Big\rceil

    rounded up to a power of the square root of 2, is the number of draws for datum i; :math:`w_i` are the importance weights
    and se is ``target_se``. The variance comes from 500 separate pilot draws: choosing K by the draws of the estimate itself
    would bias the estimate. A datum whose Pareto k is too large in the pilot gets ``max_samples`` draws.

    Args:
        sampler: Sampler of the model and guide.
        proposal: The proposal for all the data.
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        data_ids: Integer identifier of each datum, shape ``(B,)``; None: 0 to B - 1.
        target_se: Standard error to reach for each datum, nats.
        max_samples: Largest number of draws K for a datum.

    Returns:
        The estimate of each datum, in the order of the data.

    Raises:
        ValueError: If model and guide cannot run on a subset of the data.
    """
    num_pilot = min(PILOT_SAMPLES, max_samples)
    with sampler.seeded_for(data_ids, PILOT):
        pilot = sampler.estimate(proposal, num_pilot, data_ids, PILOT)
    size = proposal.data_plate.size
    ids = torch.arange(size) if data_ids is None else data_ids
    num_samples = choose_samples(pilot, target_se, max_samples)
    parts, order = [], []
    for num in num_samples.unique().tolist():
        rows = (num_samples == num).nonzero().flatten()
        with sampler.seeded_for(ids[rows]):
            part = proposal if len(rows) == size else _proposal_for(rows, sampler, proposal, args, kwargs)
            parts.append(sampler.estimate(part, num, ids[rows]))
        order.append(rows)
    estimate = Estimate.cat(parts).take(torch.cat(order).argsort())
    return dataclasses.replace(estimate, num_pilot=num_pilot)


def choose_samples(pilot: Estimate, target_se: float, max_samples: int) -> Tensor:
    """Choose the number of draws K for each datum.

    K is a power of the square root of 2, from 128 to ``max_samples``.

    Args:
        pilot: Estimates from the pilot draws.
        target_se: Standard error to reach, nats.
        max_samples: Largest K, also used for data whose pilot cannot be trusted.

    Returns:
        K of each datum, shape ``(B,)``, int64.
    """
    needed = pilot.draws * (pilot.std_error / target_se).square()
    needed = torch.where(needed.isnan(), float(max_samples), needed.clamp(min=MIN_SAMPLES))
    # Powers of the square root of 2 make few groups of data, at a cost of at most 41 % more draws than needed.
    stepped = 2 ** ((2 * needed.log2()).ceil() / 2)
    return stepped.ceil().clamp(max=max_samples).long()


def _proposal_for(rows: Tensor, sampler: Sampler, proposal: Proposal, args: Args, kwargs: Kwargs) -> Proposal:
    """Make the proposal for the given rows of the data.

    Every tensor argument whose length is that of the data plate is cut to these rows.
    """
    size = proposal.data_plate.size

    def take(leaf: T) -> T | Tensor:
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size:
            return leaf[rows.to(leaf.device)]
        return leaf

    part = sampler.proposal(*_pytree.tree_map(take, (args, kwargs)))
    if part.data_plate.size != len(rows):
        raise ValueError(
            f"target_se: the data plate {proposal.data_plate.plate!r} must have the length of the data, but it has "
            f"{part.data_plate.size} data for {len(rows)} rows; pass num_samples instead."
        )
    if not isinstance(proposal, EnumeratedDraws) and not isinstance(part, EnumeratedDraws):
        _check_same_weights(proposal, part, rows)
    return part


def _check_same_weights(whole: ProposalDraws, part: ProposalDraws, rows: Tensor) -> None:
    """Refuse importance weights that depend on the rest of the batch.

    They do if a tensor was cut that has the length of the data plate only by chance.
    """
    log_w = [
        proposal(1, NoiseStreams(0, ids, PILOT)).log_w
        for proposal, ids in ((whole, torch.arange(whole.data_plate.size)), (part, rows))
    ]
    all_normal = len(part.noise_shapes) == len(whole.noise_shapes) == whole.num_sites
    if all_normal and not torch.allclose(
        log_w[0][:, rows.to(log_w[0].device)], log_w[1], rtol=1e-3, atol=1e-3, equal_nan=True
    ):
        raise ValueError(
            "target_se: importance weights must not depend on the rest of the batch, but they changed on a subset; pass "
            "num_samples instead, or resize tensors that are not data."
        )
