"""Base class of the objectives: terms of a loss and the bound of each datum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.errors import check_count
from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.program.checks import refuse_points
from pyro_vae.inference.program.sites import is_subsample
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.log_weights import ProposalDraws


class Terms(NamedTuple):
    """What one evaluation of an objective gives; each a 0-dim tensor, nats, summed over the batch.

    Attributes:
        loss: What is minimized: with every weight and plate scale in it. Differentiable; its value is minus the
            (scaled) bound also where its gradient is a surrogate's.
        distortion: -E_q log p(x|z), detached, without scales.
        rate: KL(q(z|x) || p(z)), or its one-draw estimate, detached, without scales: beta does not enter.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


#: How Pyro's warning ends that a site marked for enumeration is drawn, which here is asked for.
DRAWN_INSTEAD = r"(?s).*you need to use TraceEnum_ELBO instead"


class Bound:
    """What the objectives here add to Pyro's: terms, a bound for each datum, and a tensor-only loss.

    Args:
        *args: Of Pyro's ELBO.
        plate: Name of the data plate, where several enclose every site.
        **options: Of Pyro's ELBO.

    Raises:
        TypeError: If ``num_particles`` is no whole number, or an option is unknown.
        ValueError: If it is below 1.
    """

    num_particles: int
    vectorize_particles: bool
    _get_traces: Callable[..., Any]

    def __init__(self, *args: object, plate: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        check_count("num_particles", self.num_particles)
        self.plate = plate

    def bound(
        self,
        model: Program,
        guide: Program,
        *args: object,
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        **kwargs: object,
    ) -> Tensor:
        """The bound on log p(x) of each datum, from one set of draws.

        Args:
            model: A Pyro model whose data lie in one plate.
            guide: Its guide.
            *args: Positional arguments of both.
            plate: Name of the data plate, where several enclose every site; default: that of the constructor.
            outer_scale: ``"refuse"`` a ``poutine.scale`` other than 1 on a site, or ``"ignore"`` it.
            **kwargs: Keyword arguments of both.

        Returns:
            Shape ``(B,)``, nats, higher is better: never a surrogate, no weight of the KL and no N/B in it.

        Raises:
            ValueError: If model and guide give no weights for each datum, see ``log_weights``, or the objective refuses a
                site.
        """
        return self._bound(model, guide, args, kwargs, plate or self.plate, outer_scale)

    def _bound(
        self, model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
    ) -> Tensor:
        """The bound of each datum, shape ``(B,)``: here the mean of the log weights."""
        draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, self.vectorize_particles)
        refuse_points(draws.model_trace, draws.guide_trace)
        terms = draws.first if self.num_particles == 1 else draws(self.num_particles)
        return terms.log_w.mean(0)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """The loss with its rate and distortion, from one set of draws.

        Args:
            model: A Pyro model.
            guide: Its guide.
            *args: What both take.
            **kwargs: Likewise.

        Raises:
            ValueError: If a KL weight stands on one side only.
        """
        parts = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            check_kl_scales(model_trace, guide_trace)
            parts.append(self._particle(model_trace, guide_trace))
        if self.num_particles == 1:
            return parts[0]
        return Terms(*(sum(part[1:], start=part[0]) / self.num_particles for part in zip(*parts, strict=True)))

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Terms:
        raise NotImplementedError

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        """Traces with log-probabilities: Pyro's checked ones under validation, else the sample sites alone."""
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        guide_trace = _SampleTrace()(guide).get_trace(*args, **kwargs)
        model_trace = _SampleTrace()(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        return model_trace, guide_trace

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Minus the (scaled) bound, nats, summed over the batch: what ``SVI.evaluate_loss`` returns."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """The loss as a 0-dim tensor, nats, summed over the batch; differentiable in model and guide."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """The loss, its gradient added to the parameters': what ``SVI.step`` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)  # type: ignore[attr-defined]
        return torch_item(loss)


class _SampleTrace(TraceMessenger):
    """``poutine.trace`` without parameters and plates that are whole, of which no objective has a use."""

    def _pyro_post_param(self, msg: Any) -> None:
        pass

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        # The model must be replayed over the rows that the guide has drawn.
        if not is_subsample(msg) or (fn.subsample_size or fn.size) < fn.size:
            super()._pyro_post_sample(msg)
