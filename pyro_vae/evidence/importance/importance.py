r"""Importance sampling of the marginal likelihood, :math:`p(x) = E_{q(z|x)}[p(x, z) / q(z|x)]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import check_counts, clear_data_errors
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.adaptive import adaptive
from pyro_vae.evidence.importance.sampler import CHUNK_ROWS, Sampler
from pyro_vae.inference.program.traces import prior_guide
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.inference.weights.log_weights import OuterScale

__all__ = ["CHUNK_ROWS", "importance_sampling", "prior_sampling"]


@clear_data_errors
@torch.no_grad()
def importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 5000,
    seed: int | None = None,
    data_ids: Sequence[int] | Tensor | None = None,
    target_se: float | None = None,
    max_samples: int = 100_000,
    chunk_rows: int | None = None,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    vectorize: bool = True,
    compile: bool | CapturedDraws = False,
    **kwargs: Any,
) -> Estimate:
    r"""Estimate log p(x) of each datum with the guide as proposal.

    .. math:: \widehat{\log p}(x_i) = \log \tfrac1K \textstyle\sum_k w_{ki}, \quad
        w_{ki} = p(x_i, z_{ki}) / q(z_{ki}|x_i)

    Biased low, by about Var(w) / (2 K p(x)^2). A guide whose sites are independent given x runs once, however large K;
    the model runs in chunks, whose weights are reduced as they come: memory does not grow with K.

    Draws of different data are independent. A site made of normals (normal, multivariate normal, low-rank, transformed) has its
    noise from a stream of its own for each seed, datum and block of draws: the size of chunks, the cut into batches (with
    ``data_ids``), the order of rows and the number of threads change an estimate by rounding only. Other sites draw from
    torch's generator, where all that changes the draws, though not their distribution. Sites of guide or model marked
    ``infer={"enumerate": "parallel"}`` are summed over, exactly; what is drawn beside them is from torch's generator.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        *args: What both take.
        num_samples: K, draws for each datum.
        seed: Seed of the draws, at least 0; None: one from torch's generator.
        data_ids: A number for each datum, at least 0, by which its draws are known, shape ``(B,)``; None: 0 to B - 1. With a
            seed, give them where data are estimated in several calls: equal numbers have equal noise.
        target_se: Standard error to reach for each datum, nats; ``num_samples`` then means nothing. A pilot of 500 other
            draws, thrown away, chooses K for each, from 128 to ``max_samples``; data whose k is too large in the pilot get
            ``max_samples``. Of the tensors among the arguments that are as long as the data plate, rows are taken.
        max_samples: The largest K under ``target_se``.
        chunk_rows: Draws x data of one call of the model, which bounds memory; at least one draw is made a call. None: 1,000,
            on an accelerator 20,000.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        compile: Whether to compile the chunks, all but the first (docs/speed.md); a :class:`CapturedDraws` shares its graphs
            between calls. The draws are those of an eager call.
        **kwargs: Likewise.

    Returns:
        The estimate of each datum, with its standard error, ESS and Pareto k.

    Raises:
        ValueError: If model and guide have no weights for each datum (see ``log_weights``), the guide is a Delta, there are no
            data, ``data_ids`` do not name each datum by a number of its own, or a number is out of range.

    References:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8; Vehtari et al., "Pareto Smoothed
        Importance Sampling", 2024.
    """
    check_counts(num_samples=num_samples, chunk_rows=chunk_rows, max_samples=max_samples)
    check_counts(0, seed=seed)
    captured = CapturedDraws() if compile is True else compile or None
    sampler = Sampler(model, guide, seed, chunk_rows, plate, outer_scale, vectorize, captured)
    ids = None if data_ids is None else _checked_ids(data_ids)
    with sampler.randomness(ids):
        draws = sampler.draws(args, kwargs)
        if ids is not None and len(ids) != draws.data_plate.size:
            raise ValueError(f"data_ids: expected one for each of {draws.data_plate.size} data, got {len(ids)}.")
        if target_se is None:
            return sampler(draws, num_samples, ids)
        if not (target_se > 0 and math.isfinite(target_se)):
            raise ValueError(f"target_se: expected a positive number of nats, got {target_se}.")
        if max_samples < 2:
            raise ValueError(f"max_samples: expected at least 2, since one draw has no error, got {max_samples}.")
        return adaptive(sampler, draws, args, kwargs, ids, target_se, max_samples)


def _checked_ids(data_ids: Sequence[int] | Tensor) -> Tensor:
    ids = torch.as_tensor(data_ids).cpu()
    whole = ids.dim() == 1 and not ids.is_floating_point() and not ids.is_complex()
    if not whole or bool((ids < 0).any()) or len(ids.unique()) != len(ids):
        raise ValueError(
            "data_ids: expected different whole numbers of at least 0, one for each datum, got others; pass the places of "
            "these data in the whole data set."
        )
    return ids.long()


@clear_data_errors
def prior_sampling(model: Callable[..., Any], *args: Any, num_samples: int = 5000, **kwargs: Any) -> Estimate:
    r"""The naive estimate of log p(x): the likelihood averaged over draws from the prior.

    .. math:: \widehat{\log p}(x) = \log \tfrac1K \textstyle\sum_k p(x | z_k), \quad z_k \sim p(z)

    Unbiased for p(x), but nearly always far too low for log p(x), since almost no draw lands where the posterior is; the
    delta-method error does not show it, Pareto k usually does. For comparison.

    Args:
        model: A Pyro model whose data lie in one plate.
        *args: What it takes.
        num_samples: K, draws for each datum.
        **kwargs: Likewise, and the options of :func:`importance_sampling`, of which ``target_se`` is rarely reached.

    Returns:
        As :func:`importance_sampling`; the rate is 0, the distortion that of prior draws.

    Raises:
        ValueError: As :func:`importance_sampling`.
    """
    return importance_sampling(model, prior_guide(model), *args, num_samples=num_samples, **kwargs)
