"""The base class of the objectives."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import pyro
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
from pyro_vae.inference.program.sites import Site, is_subsample
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.log_weights import ProposalDraws

#: End of Pyro's warning that a site marked for enumeration is drawn, which is intended here.
DRAWN_INSTEAD = r"(?s).*you need to use TraceEnum_ELBO instead"


class Terms(NamedTuple):
    """One evaluation of an objective; 0-dim tensors, nats, batch sums.

    Attributes:
        loss: The minimized value, with all weights and plate scales. Its value is minus the (scaled) bound; its gradient
            may be that of a surrogate.
        distortion: -E_q log p(x|z), detached, without scales.
        rate: KL(q(z|x) || p(z)) or its estimate from one draw, detached, without scales and without beta.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


class Bound(pyro.infer.ELBO):
    """A Pyro objective with a bound for each datum.

    Its loss is computed by tensors alone, so that a step can be captured.

    A subclass evaluates the loss of one pair of traces in ``_particle``, and the bound of each datum in ``_bound``.

    Args:
        *args: See ``pyro.infer.ELBO``.
        plate: Name of the data plate, if several enclose every site.
        **options: See ``pyro.infer.ELBO``.

    Attributes:
        num_draws: Draws of the guide for each datum and step.
        takes_beta: The objective has a KL that ``scale_kl`` may weigh.
        self_normalized: The gradient has self-normalized weights: it is not that of the bound, and exact in the limit of
            many draws only.

    Raises:
        TypeError: If ``num_particles`` is no whole number, or an option is unknown.
        ValueError: If ``num_particles`` is below 1.
    """

    takes_beta: ClassVar[bool] = True
    self_normalized: ClassVar[bool] = False

    def __init__(self, *args: object, plate: str | None = None, **options: object) -> None:
        super().__init__(*args, **options)
        check_count("num_particles", self.num_particles)
        self.plate = plate

    @property
    def num_draws(self) -> int:
        """Draws of the guide for each datum and step."""
        count: int = self.num_particles
        return count

    def bound(
        self,
        model: Program,
        guide: Program,
        *args: object,
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        **kwargs: object,
    ) -> Tensor:
        """The bound on log p(x), for each datum.

        Args:
            model: A Pyro model whose data lie in one plate.
            guide: Its guide.
            *args: Positional arguments of both.
            plate: Name of the data plate, if several enclose every site; default: that of the constructor.
            outer_scale: ``"refuse"`` a ``poutine.scale`` other than 1 on a site, or ``"ignore"`` it.
            **kwargs: Keyword arguments of both.

        Returns:
            Shape ``(B,)``, nats, higher is better: never a surrogate, without a weight of the KL and without N/B.

        Raises:
            ValueError: If model and guide have no weights for each datum, see ``log_weights``, or the objective refuses a
                site.
        """
        return self._bound(model, guide, args, kwargs, plate or self.plate, outer_scale)

    def _bound(
        self, model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
    ) -> Tensor:
        """The bound of each datum, shape ``(B,)``; here the mean log weight."""
        draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, self.vectorize_particles)
        refuse_points(draws.model_trace, draws.guide_trace)
        terms = draws.first if self.num_particles == 1 else draws(self.num_particles)
        return terms.log_w.mean(0)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """The loss with its rate and distortion, from one set of draws.

        Args:
            model: A Pyro model.
            guide: Its guide.
            *args: Positional arguments of both.
            **kwargs: Keyword arguments of both.

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
        """The terms of one pair of traces."""
        raise NotImplementedError

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        """Traces with log-probabilities: Pyro's checked ones, or the sample sites alone.

        The sample sites alone suffice without validation.
        """
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        guide_trace = _SampleTrace()(guide).get_trace(*args, **kwargs)
        model_trace = _SampleTrace()(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        return model_trace, guide_trace

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Minus the (scaled) bound, nats, summed over the batch, for ``SVI.evaluate_loss``."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """The loss as a differentiable 0-dim tensor, nats, summed over the batch."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Return the loss and add its gradient to the parameters', for ``SVI.step``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)


class _SampleTrace(TraceMessenger):
    """``poutine.trace`` without parameters and without whole plates."""

    def _pyro_post_param(self, _msg: object) -> None:
        pass

    def _pyro_post_sample(self, msg: Site) -> None:
        fn = msg["fn"]
        # The model must be replayed over the rows that the guide has drawn.
        if not is_subsample(msg) or (fn.subsample_size or fn.size) < fn.size:
            super()._pyro_post_sample(msg)
