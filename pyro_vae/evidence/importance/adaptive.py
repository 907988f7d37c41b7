"""As many draws for each datum as its error asks for, chosen by a pilot that is then thrown away."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.noise_streams import PILOT, NoiseStreams
from pyro_vae.evidence.importance.sampler import Draws, Sampler
from pyro_vae.inference.program.traces import Args, Kwargs
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws

#: Draws of the pilot, where more are allowed.
PILOT_SAMPLES = 500
#: Fewest draws: there is a tail to fit, and a threshold above 1/2.
FEWEST = 128


def adaptive(
    sampler: Sampler,
    draws: Draws,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    data_ids: Tensor | None,
    target_se: float,
    max_samples: int,
) -> Estimate:
    r"""Estimate log p(x) of each datum with a standard error of about ``target_se``.

    .. math:: K_i = \Big\lceil \widehat{\mathrm{Var}}(w_i) / (\hat p(x_i)\ \mathrm{se})^2 \Big\rceil

    rounded up to a power of the square root of 2, where the variance is that of a pilot of 500 other draws. To stop by the very
    draws that are reported would bias them. A datum whose pilot has too large a Pareto k gets ``max_samples``.

    Args:
        sampler: What to draw from.
        draws: The proposal for all the data.
        args: Arguments of model and guide.
        kwargs: Likewise.
        data_ids: Which datum each is, shape ``(B,)``; None: the first, the second, ...
        target_se: Standard error to reach for each datum, nats.
        max_samples: The largest K.

    Raises:
        ValueError: If rows cannot be taken from the arguments, so that model and guide see a part of the data.
    """
    num_pilot = min(PILOT_SAMPLES, max_samples)
    with sampler.randomness(data_ids, PILOT):
        pilot = sampler(draws, num_pilot, data_ids, PILOT)
    size = draws.data_plate.size
    ids = torch.arange(size) if data_ids is None else data_ids
    wanted = choose_samples(pilot, target_se, max_samples)
    parts, order = [], []
    for num in wanted.unique().tolist():
        rows = (wanted == num).nonzero().flatten()
        with sampler.randomness(ids[rows]):
            ours = draws if len(rows) == size else _rows(sampler, draws, args, kwargs, rows)
            parts.append(sampler(ours, num, ids[rows]))
        order.append(rows)
    found = Estimate.cat(parts).take(torch.cat(order).argsort())
    return dataclasses.replace(found, num_pilot=num_pilot)


def choose_samples(pilot: Estimate, target_se: float, max_samples: int) -> Tensor:
    """K of each datum, from 128 to ``max_samples``, a power of the square root of 2 between them.

    Args:
        pilot: Estimates from a few draws.
        target_se: Standard error to reach.
        max_samples: The largest K; that of data whose pilot cannot be trusted.

    Returns:
        Shape ``(B,)``, int64.
    """
    needed = pilot.draws * (pilot.std_error / target_se).square()
    needed = torch.where(needed.isnan(), float(max_samples), needed.clamp(min=FEWEST))
    # The square root of 2: a few groups of data, and at most 41 % more draws than were asked for.
    stepped = 2 ** ((2 * needed.log2()).ceil() / 2)
    return stepped.ceil().clamp(max=max_samples).long()


def _rows(sampler: Sampler, draws: Draws, args: Args, kwargs: Kwargs, rows: Tensor) -> Draws:
    """The proposal for some of the data: of every tensor as long as the data plate, these rows."""
    size = draws.data_plate.size

    def part(leaf: Any) -> Any:
        ours = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size
        return leaf[rows.to(leaf.device)] if ours else leaf

    some = sampler.draws(*_pytree.tree_map(part, (args, kwargs)))
    if some.data_plate.size != len(rows):
        raise ValueError(
            f"target_se: expected the data plate {draws.data_plate.plate!r} to have the length of the data, got "
            f"{some.data_plate.size} data for {len(rows)} rows; pass num_samples alone."
        )
    if not isinstance(draws, EnumeratedDraws) and not isinstance(some, EnumeratedDraws):
        _compare(draws, some, rows)
    return some


def _compare(whole: Any, some: Any, rows: Tensor) -> None:
    """Refuse rows that are no data: a tensor may be as long as the plate by chance."""
    terms = [
        draws(1, NoiseStreams(0, ids, PILOT)).log_w
        for draws, ids in ((whole, torch.arange(whole.data_plate.size)), (some, rows))
    ]
    all_normal = len(some.noise_shapes) == len(whole.noise_shapes) == whole.num_sites
    if all_normal and not torch.allclose(
        terms[0][:, rows.to(terms[0].device)], terms[1], rtol=1e-3, atol=1e-3, equal_nan=True
    ):
        raise ValueError(
            "target_se: expected the weights of a datum not to depend on what else is in the batch, got others for a part of "
            "it; pass num_samples alone, or keep other tensors as long as the data out of the arguments."
        )
