r"""Importance sampling of the marginal likelihood, :math:`p(x) = E_{q(z|x)}[p(x, z) / q(z|x)]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import check_count, check_counts, check_nats, clear_data_errors
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.adaptive import adaptive
from pyro_vae.evidence.importance.sampler import Sampler
from pyro_vae.inference.program.traces import Program, prior_guide
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.inference.weights.draws import OuterScale

__all__ = ["importance_sampling", "prior_sampling"]


@clear_data_errors
@torch.no_grad()
def importance_sampling(
    model: Program,
    guide: Program,
    *args: object,
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
    **kwargs: object,
) -> Estimate:
    r"""Estimate log p(x) of each datum with the guide as proposal.

    .. math:: \widehat{\log p}(x_i) = \log \tfrac1K \textstyle\sum_k w_{ki}, \quad
        w_{ki} = p(x_i, z_{ki}) / q(z_{ki}|x_i)

    w is an importance weight and K the number of draws. The estimate is biased low, by about Var(w) / (2 K p(x)^2).

    A guide whose sites are independent given x runs once, however large K is. The model runs in chunks of draws, and the
    weights of a chunk are reduced before the next chunk is drawn, so memory does not grow with K.

    Draws of different data are independent. A site made of normals (normal, multivariate normal, low-rank, transformed) takes
    its noise from a separate random stream for each seed, datum and block of draws. The size of chunks, the split into batches
    (with ``data_ids``), the order of rows and the number of threads then change an estimate by rounding only. Other sites use
    torch's generator: these choices change their draws, but not the distribution of the draws. Sites of guide or model marked
    ``infer={"enumerate": "parallel"}`` are summed over exactly; the remaining sites of such a program use torch's generator.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Positional arguments of model and guide.
        num_samples: Number of draws K for each datum.
        seed: Seed of the draws, at least 0; None: a seed from torch's generator.
        data_ids: Integer identifier of each datum, at least 0, shape ``(B,)``; None: 0 to B - 1. Seed and identifier set the
            noise of a datum: pass identifiers if several calls with one seed estimate different data.
        target_se: Standard error to reach for each datum, nats; ``num_samples`` is then ignored. A discarded pilot of 500 draws
            chooses K for each datum, from 128 to ``max_samples``; data whose Pareto k is too large in the pilot get
            ``max_samples``. Tensor arguments whose length is that of the data plate are then cut to groups of rows.
        max_samples: Largest K that ``target_se`` may choose.
        chunk_rows: Largest number of rows (draws * data) in one call of the model, to bound memory; one draw is the minimum.
            None: 1,000 on the CPU, 20,000 on an accelerator.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        compile: Compile all calls of the model but the first (docs/speed.md). A :class:`CapturedDraws` shares its graphs
            between calls. The draws equal those of an eager call.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        The estimate of each datum, with its standard error, ESS and Pareto k.

    Raises:
        ValueError: If model and guide have no weights for each datum (see ``log_weights``), the guide is a Delta, there are no
            data, ``data_ids`` are not one distinct number for each datum, or a number is out of range.

    References:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8; Vehtari et al., "Pareto Smoothed
        Importance Sampling", 2024.
    """
    _check_options(num_samples, seed, target_se, max_samples, chunk_rows)
    captured = CapturedDraws() if compile is True else compile or None
    sampler = Sampler(model, guide, seed, chunk_rows, plate, outer_scale, vectorize, captured)
    ids = None if data_ids is None else _checked_ids(data_ids)
    with sampler.seeded_for(ids):
        proposal = sampler.proposal(args, kwargs)
        if ids is not None and len(ids) != proposal.data_plate.size:
            raise ValueError(
                f"data_ids: expected {proposal.data_plate.size} numbers, one for each datum, got {len(ids)}."
            )
        if target_se is None:
            return sampler.estimate(proposal, num_samples, ids)
        return adaptive(sampler, proposal, args, kwargs, ids, target_se, max_samples)


def _check_options(
    num_samples: int, seed: int | None, target_se: float | None, max_samples: int, chunk_rows: int | None
) -> None:
    check_counts(num_samples=num_samples, max_samples=max_samples, chunk_rows=chunk_rows)
    check_counts(0, seed=seed)
    if target_se is not None:
        check_nats("target_se", target_se)
        check_count("max_samples", max_samples, least=2, remark=", since one draw has no error")


def _checked_ids(data_ids: Sequence[int] | Tensor) -> Tensor:
    ids = torch.as_tensor(data_ids).cpu()
    integers = ids.dim() == 1 and not ids.is_floating_point() and not ids.is_complex()
    if not integers or bool((ids < 0).any()) or len(ids.unique()) != len(ids):
        raise ValueError(
            "data_ids: expected distinct integers of at least 0, one for each datum, got other values; pass the row of each "
            "datum in the whole data set."
        )
    return ids.long()


@clear_data_errors
def prior_sampling(model: Program, *args: object, num_samples: int = 5000, **kwargs: Any) -> Estimate:
    r"""Estimate log p(x) by averaging the likelihood over draws from the prior.

    .. math:: \widehat{\log p}(x) = \log \tfrac1K \textstyle\sum_k p(x | z_k), \quad z_k \sim p(z)

    This naive estimate is a baseline. It is unbiased for p(x), but biased low for log p(x), nearly always by far, because
    almost no draw lands where the posterior is. The delta-method error does not show this bias; Pareto k usually does.

    Args:
        model: A Pyro model whose data lie in one plate.
        *args: Positional arguments of the model.
        num_samples: Number of draws K for each datum.
        **kwargs: Keyword arguments of the model, and options of :func:`importance_sampling`. The option ``target_se`` is rarely
            reached.

    Returns:
        The estimate of each datum, see :func:`importance_sampling`. The rate is 0; the distortion is a mean over prior draws.

    Raises:
        ValueError: See :func:`importance_sampling`.
    """
    return importance_sampling(model, prior_guide(model), *args, num_samples=num_samples, **kwargs)
