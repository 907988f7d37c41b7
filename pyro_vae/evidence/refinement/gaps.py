r"""Why an ELBO is below log p(x): the family of the guide, and the encoder's failure to reach its best member."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import clear_data_errors
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.importance import importance_sampling
from pyro_vae.evidence.refinement.refined import refine_for, refined_importance_sampling, split_options
from pyro_vae.inference.program.traces import Program


@dataclass(frozen=True)
class Gaps:
    r"""The inference gap of each datum in two parts; tensors of shape ``(B,)``, float64, CPU, nats.

    .. math:: \log p(x) - \mathcal L(q) = \underbrace{\log p(x) - \mathcal L(q^*)}_{\text{approximation}}
        + \underbrace{\mathcal L(q^*) - \mathcal L(q)}_{\text{amortization}}

    where q is the guide and :math:`q^*` the best of its family for this datum. What was refined is at most as good as
    :math:`q^*`: the amortization gap is estimated low and the approximation gap high, by what refinement left. The
    estimate of log p(x) is a stochastic lower bound: the approximation gap, and the sum, low by its bias.

    Attributes:
        log_px: log p(x), as given or importance-sampled from a refined proposal.
        log_px_error: Its Monte Carlo standard error; NaN where it is not known.
        elbo: ELBO of the guide.
        elbo_error: Its Monte Carlo standard error.
        elbo_refined: ELBO of the refined guide.
        elbo_refined_error: Its Monte Carlo standard error.
        kept: Where the refined parameters were better than the guide's, bool; elsewhere the amortization gap is 0 but
            for noise.
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
        """log p(x) less the guide's ELBO: the sum of the two gaps, KL(q || posterior)."""  # noqa: D403
        return self.log_px - self.elbo

    @property
    def approximation(self) -> Tensor:
        """log p(x) less the refined ELBO: what the family of the guide costs."""  # noqa: D403
        return self.log_px - self.elbo_refined

    @property
    def amortization(self) -> Tensor:
        """The refined ELBO less the guide's: what one encoder for all data costs."""
        return self.elbo_refined - self.elbo

    @property
    def inference_error(self) -> Tensor:
        """Monte Carlo standard error of ``inference``; NaN where that of log p(x) is not known."""
        return torch.hypot(self.log_px_error, self.elbo_error)

    @property
    def approximation_error(self) -> Tensor:
        """Monte Carlo standard error of ``approximation``; NaN where that of log p(x) is not known."""
        return torch.hypot(self.log_px_error, self.elbo_refined_error)

    @property
    def amortization_error(self) -> Tensor:
        """Monte Carlo standard error of ``amortization``."""
        return torch.hypot(self.elbo_refined_error, self.elbo_error)

    @classmethod
    def cat(cls, parts: Sequence[Gaps]) -> Gaps:
        """Those of several batches as one.

        Raises:
            ValueError: If there are none.
        """
        if not parts:
            raise ValueError("cat: expected at least one part, got none; find the gaps of some data first.")
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def summary(self) -> GapsSummary:
        """Means over data, each with the error of the data and of Monte Carlo."""
        values: dict[str, Any] = {}
        for name in ("inference", "approximation", "amortization"):
            gap, error = getattr(self, name), getattr(self, f"{name}_error")
            values[name] = float(gap.mean())
            values[f"{name}_std_error"] = float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else None
            pooled = float(error.square().sum().sqrt() / len(error))
            values[f"{name}_mc_error"] = None if math.isnan(pooled) else pooled
        return GapsSummary(**values, num_kept=int(self.kept.sum()), num_data=len(self.kept))


@dataclass(frozen=True)
class GapsSummary:
    """Means of :class:`Gaps` over N data, nats per datum.

    Attributes:
        inference: Mean of log p(x) - ELBO.
        inference_std_error: Its standard error over data. None at N = 1, here and below.
        inference_mc_error: Its Monte Carlo standard error; None where that of log p(x) is not known for every datum.
        approximation: Mean of log p(x) - refined ELBO.
        approximation_std_error: Its standard error over data.
        approximation_mc_error: Its Monte Carlo standard error, likewise.
        amortization: Mean of refined ELBO - ELBO.
        amortization_std_error: Its standard error over data.
        amortization_mc_error: Its Monte Carlo standard error.
        num_kept: For how many data the refined parameters were better.
        num_data: N.
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
    r"""Decompose log p(x) - ELBO of each datum into approximation and amortization gap; see :class:`Gaps`.

    The guide is refined for each datum (``refine``); its ELBO and that of the refined guide come from ``num_samples`` draws
    each, which chose nothing. log p(x) is importance-sampled from a proposal beyond the family, where it can be had (see
    ``refined_importance_sampling``).

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        *args: What both take.
        steps: See ``refine``.
        lr: Likewise.
        num_particles: Likewise.
        num_samples: Draws for each datum, of each of the two guides; at least 2.
        log_px: A better estimate of log p(x) for the same data, such as an annealed one, from draws of its own; None: one of
            ``num_samples`` draws.
        **kwargs: What both take, and the options of ``importance_sampling``.

    Returns:
        The gaps of each datum, with their errors.

    Raises:
        ValueError: As ``refine`` and ``importance_sampling``; if ``num_samples`` is below 2 or ``log_px`` is of other data.

    References:
        Cremer, Li, Duvenaud, "Inference Suboptimality in Variational Autoencoders", 2018, eq. 5.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, since one draw has no error, got {num_samples}.")
    options, inputs = split_options(kwargs)
    refined = refine_for(model, guide, args, options, inputs, steps=steps, lr=lr, num_particles=num_particles)

    def estimated(estimate: Callable[..., Estimate], proposal: Program, which: int, **own: Any) -> Estimate:
        # Of one seed they would have the same noise, and their errors would not add.
        seed = {"seed": 3 * options["seed"] + which} if options.get("seed") is not None else {}
        return estimate(model, proposal, *args, num_samples=num_samples, **{**options, **seed}, **inputs, **own)

    plain, best = estimated(importance_sampling, guide, 0), estimated(importance_sampling, refined, 1)
    exact = log_px
    if exact is None:
        exact = estimated(refined_importance_sampling, guide, 2, steps=steps, lr=lr)
    if exact.log_px.shape != plain.log_px.shape:
        raise ValueError(
            f"log_px: expected an estimate of these {len(plain.log_px)} data, got one of {len(exact.log_px)}."
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
