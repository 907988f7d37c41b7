"""Importance sampling from a guide refined for each datum."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import clear_data_errors
from pyro_vae.evidence.estimates.diagnostics import pareto_k_threshold
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.importance import importance_sampling
from pyro_vae.evidence.refinement.refined import Refined, derived_seed, refine
from pyro_vae.inference.program.traces import Args, Program

#: Number of draws for each datum from each guide in the comparison of the two proposals.
NUM_PILOT = 500
#: Loss of log p(x), in standard errors of the difference, above which refinement has lost a mode.
MIN_LOSS = 3.0

#: Keyword arguments of an estimator, or of model and guide.
Keywords = dict[str, Any]


@clear_data_errors
def refined_importance_sampling(
    model: Program,
    guide: Program,
    *args: object,
    steps: int = 200,
    lr: float = 0.1,
    num_particles: int = 8,
    full_covariance: bool = True,
    num_samples: int = 5000,
    **kwargs: object,
) -> Estimate:
    r"""Estimate log p(x) with a proposal refined for each datum.

    .. math:: \log p(x_i) \approx \log \tfrac1K \textstyle\sum_k \frac{p(x_i, z_{ki})}{q_{\delta_i}(z_{ki}|x_i)},
        \quad z_{ki} \sim q_{\delta_i}(z|x_i)

    :func:`refine` makes the proposal :math:`q_{\delta_i}`, and :func:`importance_sampling` draws from it. This helps data whose
    Pareto k is bad under the original guide. But maximizing the ELBO favours a narrow guide. If the posterior has several
    modes, refinement may keep one mode only. It then turns a wide guide, which is a fair proposal, into a bad proposal, and the
    diagnostics may not show it. Therefore 500 draws from the original guide are compared with 500 from the refined guide. A
    datum returns to the original guide if its Pareto k is good under that guide and either its effective sample size is
    larger under that guide, or its log p(x) is larger by more than three standard errors. Modes that neither guide finds are
    missed; :func:`annealed_importance_sampling` may find them.

    The estimate uses fresh draws, so it remains a stochastic lower bound. ``elbo``, ``rate`` and ``distortion`` are those of
    the proposal. The refinement draws from torch's generator: if the data are split into other batches, their proposals
    differ slightly.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Positional arguments of model and guide.
        steps: See :func:`refine`.
        lr: See :func:`refine`.
        num_particles: See :func:`refine`.
        full_covariance: See :func:`refine`; True by default, because the proposal may leave the guide's family.
        num_samples: Number of draws K for each datum.
        **kwargs: Keyword arguments of model and guide, and options of :func:`importance_sampling`.

    Returns:
        The estimate for each datum.

    Raises:
        ValueError: See :func:`refine` and :func:`importance_sampling`.
    """
    options, inputs = split_options(kwargs)
    how = {"steps": steps, "lr": lr, "num_particles": num_particles, "full_covariance": full_covariance}
    refined = refine_with_options(model, guide, args, options, inputs, **how)
    if bool(refined.kept.any()):
        refined = refined.keeping(refined.kept & ~_worse_proposals(model, refined, args, options, inputs))
    # If the estimator runs a subset of the rows, it needs the same rows of the refined parameters.
    inputs["_rows"] = torch.arange(len(refined.kept))

    def model_of_rows(*args: object, _rows: Tensor, **kwargs: object) -> object:
        return model(*args, **kwargs)

    def guide_of_rows(*args: object, _rows: Tensor, **kwargs: object) -> object:
        return refined.take(_rows)(*args, **kwargs)

    return importance_sampling(model_of_rows, guide_of_rows, *args, num_samples=num_samples, **options, **inputs)


def refine_with_options(
    model: Program, guide: Program, args: Args, options: Keywords, inputs: Keywords, **how: Any
) -> Refined:
    """Refine a guide with the options that ``refine`` and ``importance_sampling`` share.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        args: Positional arguments of model and guide.
        options: Options of :func:`importance_sampling`; only the options that :func:`refine` also has are passed on.
        inputs: Keyword arguments of model and guide.
        **how: Further options of :func:`refine`.
    """
    shared = {name: options[name] for name in inspect.signature(refine).parameters if name in options}
    return refine(model, guide, *args, **how, **shared, **inputs)


def _worse_proposals(model: Program, refined: Refined, args: Args, options: Keywords, inputs: Keywords) -> Tensor:
    """Find the data for which the original guide is the better proposal.

    The draws of this comparison are used for nothing else.

    Returns:
        True for data whose original guide is better, shape ``(B,)`` for B data, bool.
    """
    shared = {n: v for n, v in options.items() if n in ("data_ids", "chunk_rows", "plate", "outer_scale", "vectorize")}
    shared["seed"] = None if options.get("seed") is None else derived_seed(options["seed"], b"pilot")
    first, second = (
        importance_sampling(model, guide, *args, num_samples=NUM_PILOT, **shared, **inputs)
        for guide in (refined.guide, refined)
    )
    good, error = first.pareto_k <= pareto_k_threshold(NUM_PILOT), (first.std_error**2 + second.std_error**2).sqrt()
    return refined.kept & good & ((first.ess > second.ess) | (first.log_px - second.log_px > MIN_LOSS * error))


def split_options(kwargs: Keywords) -> tuple[Keywords, Keywords]:
    """Split keyword arguments into options and program inputs.

    The options are those of :func:`importance_sampling`; the other arguments are inputs of model and guide.
    """
    parameters = inspect.signature(importance_sampling).parameters
    names = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    return {k: v for k, v in kwargs.items() if k in names}, {k: v for k, v in kwargs.items() if k not in names}
