"""The inference gap of an ELBO: approximation gap plus amortization gap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import clear_data_errors
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.importance import importance_sampling
from pyro_vae.evidence.refinement.refined_importance import (
    refine_with_options,
    refined_importance_sampling,
    split_options,
)
from pyro_vae.inference.program.traces import Program


@dataclass(frozen=True)
class Gaps:
    r"""The two parts of each datum's inference gap.

    .. math:: \log p(x) - \mathcal L(q) = \underbrace{\log p(x) - \mathcal L(q^*)}_{\text{approximation}}
        + \underbrace{\mathcal L(q^*) - \mathcal L(q)}_{\text{amortization}}

    where :math:`\mathcal L` is the ELBO, q is the guide, and :math:`q^*` is the best distribution for this datum in the
    guide's family. The approximation gap is the cost of the family, the amortization gap the cost of one encoder for all data.

    The refined guide is at most as good as :math:`q^*`. This makes the estimated amortization gap too low and the estimated
    approximation gap too high. The estimate of log p(x) is a stochastic lower bound. This makes the estimates of the
    approximation gap and of the sum of both gaps too low.

    All tensors have shape ``(B,)`` for B data and are on the CPU; all but ``kept`` are float64, in nats.

    Attributes:
        log_px: Estimate of log p(x), given by the caller or importance-sampled from a refined guide.
        log_px_error: Monte Carlo standard error of ``log_px``; NaN where unknown.
        elbo: ELBO of the guide.
        elbo_error: Monte Carlo standard error of ``elbo``.
        elbo_refined: ELBO of the refined guide.
        elbo_refined_error: Monte Carlo standard error of ``elbo_refined``.
        kept: True for data whose refined parameters were better than the guide's, bool. For all other data, the amortization
            gap is 0 except for noise.
    """

    log_px: Tensor
    log_px_error: Tensor
    elbo: Tensor
    elbo_error: Tensor
    elbo_refined: Tensor
    elbo_refined_error: Tensor
    kept: Tensor

    @property
    def inference(self) -> Tensor:
        """``log_px - elbo``, the sum of both gaps: KL(q || posterior)."""
        return self.log_px - self.elbo

    @property
    def approximation(self) -> Tensor:
        """``log_px - elbo_refined``, the cost of the guide's family."""
        return self.log_px - self.elbo_refined

    @property
    def amortization(self) -> Tensor:
        """``elbo_refined - elbo``, the cost of one encoder for all data."""
        return self.elbo_refined - self.elbo

    @property
    def inference_error(self) -> Tensor:
        """Monte Carlo standard error of ``inference``; NaN where ``log_px_error`` is NaN."""
        return torch.hypot(self.log_px_error, self.elbo_error)

    @property
    def approximation_error(self) -> Tensor:
        """Monte Carlo standard error of ``approximation``; NaN where ``log_px_error`` is NaN."""
        return torch.hypot(self.log_px_error, self.elbo_refined_error)

    @property
    def amortization_error(self) -> Tensor:
        """Monte Carlo standard error of ``amortization``."""
        return torch.hypot(self.elbo_refined_error, self.elbo_error)

    @classmethod
    def cat(cls, parts: Sequence[Gaps]) -> Gaps:
        """Join the gaps of several batches.

        Raises:
            ValueError: If ``parts`` is empty.
        """
        if not parts:
            raise ValueError("cat: expected at least one part, got none; compute the gaps of some data first.")
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def summary(self) -> GapsSummary:
        """Average each gap over the data, and compute the errors."""
        inference, inference_std_error, inference_mc_error = _mean(self.inference, self.inference_error)
        approximation, approximation_std_error, approximation_mc_error = _mean(
            self.approximation, self.approximation_error
        )
        amortization, amortization_std_error, amortization_mc_error = _mean(self.amortization, self.amortization_error)
        return GapsSummary(
            inference=inference,
            inference_std_error=inference_std_error,
            inference_mc_error=inference_mc_error,
            approximation=approximation,
            approximation_std_error=approximation_std_error,
            approximation_mc_error=approximation_mc_error,
            amortization=amortization,
            amortization_std_error=amortization_std_error,
            amortization_mc_error=amortization_mc_error,
            num_kept=int(self.kept.sum()),
            num_data=len(self.kept),
        )


def _mean(gap: Tensor, error: Tensor) -> tuple[float, float | None, float | None]:
    """Return a gap's mean, its standard error and its Monte Carlo error."""
    over_data = float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else None
    monte_carlo = float(error.square().sum().sqrt() / len(error))
    return float(gap.mean()), over_data, None if math.isnan(monte_carlo) else monte_carlo


@dataclass(frozen=True)
class GapsSummary:
    """Means of the :class:`Gaps` of N data, nats per datum.

    Attributes:
        inference: Mean of log p(x) - ELBO.
        inference_std_error: Standard error of ``inference`` over data; None at N = 1.
        inference_mc_error: Monte Carlo standard error of ``inference``; None if any error of log p(x) is unknown.
        approximation: Mean of log p(x) - refined ELBO.
        approximation_std_error: Standard error of ``approximation`` over data; None at N = 1.
        approximation_mc_error: Monte Carlo standard error of ``approximation``; None if ``inference_mc_error`` is None.
        amortization: Mean of refined ELBO - ELBO.
        amortization_std_error: Standard error of ``amortization`` over data; None at N = 1.
        amortization_mc_error: Monte Carlo standard error of ``amortization``.
        num_kept: Number of data for which the refined parameters were better.
        num_data: Number of data, N.
    """

    inference: float
    inference_std_error: float | None
    inference_mc_error: float | None
    approximation: float
    approximation_std_error: float | None
    approximation_mc_error: float | None
    amortization: float
    amortization_std_error: float | None
    amortization_mc_error: float | None
    num_kept: int
    num_data: int


@clear_data_errors
def gaps(
    model: Program,
    guide: Program,
    *args: object,
    steps: int = 200,
    lr: float = 0.1,
    num_particles: int = 4,
    num_samples: int = 1000,
    log_px: Estimate | None = None,
    **kwargs: object,
) -> Gaps:
    """Split each datum's inference gap into approximation and amortization gap.

    See :class:`Gaps` for the formula and the direction of the biases. ``refine`` refines the guide for each datum. The ELBOs
    of the guide and of the refined guide are estimated from ``num_samples`` fresh draws each. ``refined_importance_sampling``
    estimates log p(x) with a proposal outside the guide's family.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Positional arguments of model and guide.
        steps: See ``refine``.
        lr: See ``refine``.
        num_particles: See ``refine``.
        num_samples: Number of draws for each datum from each guide, at least 2.
        log_px: A better estimate of log p(x) for the same data, made from other draws, such as an annealed estimate; None:
            log p(x) is estimated by importance sampling with ``num_samples`` draws.
        **kwargs: Keyword arguments of model and guide, and options of ``importance_sampling``.

    Returns:
        The gaps of each datum, with their errors.

    Raises:
        ValueError: See ``refine`` and ``importance_sampling``. Also if ``num_samples`` is below 2, or ``log_px`` has a
            different number of data.

    References:
        Cremer, Li, Duvenaud, "Inference Suboptimality in Variational Autoencoders", 2018, eq. 5.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, since one draw has no standard error, got {num_samples}.")
    options, inputs = split_options(kwargs)
    refined = refine_with_options(model, guide, args, options, inputs, steps=steps, lr=lr, num_particles=num_particles)

    def estimated(estimate: Callable[..., Estimate], proposal: Program, which: int, **how: float) -> Estimate:
        # With one seed, the estimates would share their noise, and their errors would not add.
        seed = {"seed": 3 * options["seed"] + which} if options.get("seed") is not None else {}
        return estimate(model, proposal, *args, num_samples=num_samples, **{**options, **seed}, **inputs, **how)

    plain, best = estimated(importance_sampling, guide, 0), estimated(importance_sampling, refined, 1)
    exact = log_px
    if exact is None:
        exact = estimated(refined_importance_sampling, guide, 2, steps=steps, lr=lr)
    if exact.log_px.shape != plain.log_px.shape:
        raise ValueError(
            f"log_px: expected an estimate for the {len(plain.log_px)} given data, got one for {len(exact.log_px)} data; "
            "estimate log p(x) of the given data."
        )
    return Gaps(
        log_px=exact.log_px,
        log_px_error=exact.std_error,
        elbo=plain.elbo,
        elbo_error=plain.elbo_std_error,
        elbo_refined=best.elbo,
        elbo_refined_error=best.elbo_std_error,
        kept=refined.kept,
    )
