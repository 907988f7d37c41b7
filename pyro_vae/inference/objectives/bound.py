"""The base class of the objectives."""

from __future__ import annotations

import inspect
from typing import ClassVar, NamedTuple, Self

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
from pyro_vae.lookup import unknown

#: Pattern of Pyro's warning that a site marked for enumeration is drawn. Here the draw is intended.
DRAWN_INSTEAD = r"(?s).*you need to use TraceEnum_ELBO instead"


class Terms(NamedTuple):
    """The loss of one batch, and the batch's distortion and rate.

    All are 0-dim tensors, nats, summed over the batch.

    Attributes:
        loss: The negative bound, with KL weights and plate scales. Its gradient may be that of a surrogate.
        distortion: -E_q log p(x|z), detached, without scales.
        rate: KL(q(z|x) || p(z)) or a Monte Carlo estimate, detached, without scales and KL weights.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


def constructor_options(cls: type) -> list[str]:
    """Return the names of a constructor's options.

    If the constructor has ``**options``, the options of the base class are included, and so on up the base classes.
    """
    options: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(base).parameters.values()
            options |= dict.fromkeys(o.name for o in own if o.kind not in (o.VAR_POSITIONAL, o.VAR_KEYWORD))
            if all(o.kind is not o.VAR_KEYWORD for o in own):
                break
    return list(options)


class _KnownOptions:
    """Base class that refuses unknown options before an ``__init__`` runs.

    Otherwise a constructor that passes on ``**options`` would fail in a base class, with a message that names the base
    class.
    """

    def __new__(cls, *_args: object, **options: object) -> Self:
        known = constructor_options(cls) if options else []
        for option in options:
            if option not in known:
                raise TypeError(f"{cls.__name__}: {unknown('option', option, known)}")
        return super().__new__(cls)


class Bound(_KnownOptions, pyro.infer.ELBO):
    """A Pyro objective that also computes a bound for each datum.

    The loss is computed with tensors only, so a training step can be captured as a graph.

    A subclass implements ``_particle``, which computes the loss from one trace of the model and one of the guide, and
    may override ``_bound``, which computes the bound of each datum.

    Args:
        *args: See ``pyro.infer.ELBO``.
        plate: Name of the data plate; needed if several plates enclose every site.
        **options: See ``pyro.infer.ELBO``.

    Attributes:
        num_draws: Number of draws from the guide for each datum in one training step.
        takes_beta: True if the objective has a KL term, which ``scale_kl`` can weight.
        self_normalized: True if the gradient uses self-normalized importance weights. Such a gradient differs from the
            gradient of the bound. It is biased for every finite number of draws K.

    Raises:
        TypeError: If ``num_particles`` is not a whole number, or an option is unknown.
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
        """Number of draws for each datum in one training step."""
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
        """Compute the bound on log p(x) for each datum.

        Args:
            model: A Pyro model with a data plate.
            guide: A guide of the model.
            *args: Positional arguments of model and guide.
            plate: Name of the data plate. If None, the constructor's ``plate``.
            outer_scale: If a site has a ``poutine.scale`` other than 1: ``"refuse"`` raises an error, ``"ignore"``
                leaves the scale out.
            **kwargs: Keyword arguments of model and guide.

        Returns:
            Bound of each datum, shape ``(B,)``, nats, higher is better. The bound has no KL weights and no scale N/B.
            It is the value of the bound, never a surrogate.

        Raises:
            ValueError: If ``log_weights`` refuses the model or guide, or the objective refuses a site.
        """
        return self._bound(model, guide, args, kwargs, plate or self.plate, outer_scale)

    def _bound(
        self, model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
    ) -> Tensor:
        """Compute the bound of each datum; here the mean log importance weight.

        Returns:
            Bound, shape ``(B,)``, nats.
        """
        draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, self.vectorize_particles)
        refuse_points(draws.model_trace, draws.guide_trace)
        terms = draws.first if self.num_particles == 1 else draws(self.num_particles)
        return terms.log_w.mean(0)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """Compute loss, rate and distortion from the same draws.

        Args:
            model: A Pyro model.
            guide: A guide of the model.
            *args: Positional arguments of model and guide.
            **kwargs: Keyword arguments of model and guide.

        Returns:
            Loss, distortion and rate: 0-dim tensors, nats, summed over the batch.

        Raises:
            ValueError: If only the model or only the guide has a KL weight.
        """
        parts = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            check_kl_scales(model_trace, guide_trace)
            parts.append(self._particle(model_trace, guide_trace))
        if self.num_particles == 1:
            return parts[0]
        return Terms(*(sum(part[1:], start=part[0]) / self.num_particles for part in zip(*parts, strict=True)))

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Terms:
        """Compute the terms from one model trace and one guide trace."""
        raise NotImplementedError

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        """Return traces of model and guide, with log-probabilities.

        If Pyro's validation is on, Pyro makes and checks the traces. If it is off, the traces have sample sites only.
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
        """Compute the loss without gradient: a number, nats, summed over the batch."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """Compute the differentiable loss: 0-dim, nats, summed over the batch."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Compute the loss and add its gradient to each parameter's ``grad``.

        Returns:
            Loss, nats, summed over the batch.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)


class _SampleTrace(TraceMessenger):
    """A ``poutine.trace`` that records sample sites, but no parameters."""

    def _pyro_post_param(self, _msg: object) -> None:
        pass

    def _pyro_post_sample(self, msg: Site) -> None:
        fn = msg["fn"]
        # Keep subsampling sites: the model must be replayed with the guide's subsample.
        if not is_subsample(msg) or (fn.subsample_size or fn.size) < fn.size:
            super()._pyro_post_sample(msg)
