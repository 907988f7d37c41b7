"""Objectives: ``pyro.infer.ELBO`` classes that also tell the true bound for each datum.

Each works in ``pyro.infer.SVI`` and as ``elbo(model, guide)(*args)``, and has no ``.item()`` on its main path.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.trace_elbo import _compute_log_r
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.layout import (
    Site,
    base_name,
    check_match,
    check_scales,
    drawn_sites,
    find_layout,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
)
from pyro_vae.inference.weights import OuterScale, ProposalDraws

Program = Callable[..., Any]


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


class _Bound:
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

    def __init__(self, *args: Any, plate: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        check_count("num_particles", self.num_particles)
        self.plate = plate

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
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

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        """Traces with log-probabilities: Pyro's checked ones under validation, else the sample sites alone."""
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        guide_trace = _SampleTrace()(guide).get_trace(*args, **kwargs)
        model_trace = _SampleTrace()(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        return model_trace, guide_trace

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the (scaled) bound, nats, summed over the batch: what ``SVI.evaluate_loss`` returns."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a 0-dim tensor, nats, summed over the batch; differentiable in model and guide."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, its gradient added to the parameters': what ``SVI.step`` calls."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)  # type: ignore[attr-defined]
        return torch_item(loss)


def check_count(name: str, value: Any, least: int = 1, remark: str = "") -> None:
    """Refuse what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__} {value!r}.")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}{remark}, got {value}.")


def check_number(name: str, value: Any, right: Callable[[float], bool], expected: str, remark: str = "") -> None:
    """Refuse what is no number, or not one that is ``right``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} {value!r}{remark}.")
    if not right(float(value)):
        raise ValueError(f"{name}: expected {expected}, got {value}{remark}.")


class _SampleTrace(TraceMessenger):
    """``poutine.trace`` without parameters and plates that are whole, of which no objective has a use."""

    def _pyro_post_param(self, msg: Any) -> None:
        pass

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        # The model must be replayed over the rows that the guide has drawn.
        if type(fn).__name__ != "_Subsample" or (fn.subsample_size or fn.size) < fn.size:
            super()._pyro_post_sample(msg)


def _true_sum(site: Site) -> Tensor:
    """Sum of a site's log-probability, masked, without scales, detached."""
    if isinstance(site["scale"], float) and site["scale"] == 1.0:
        return site["log_prob_sum"].detach()
    return site_log_prob(site).detach().sum()


class TraceELBO(_Bound, pyro.infer.Trace_ELBO):
    r"""The evidence lower bound, every term sampled.

    .. math:: \mathcal L(x) = E_{q(z|x)}[\log p(x, z) - \log q(z|x)] \le \log p(x)

    A ``pyro.infer.Trace_ELBO``, with its options. The estimate is unbiased for the ELBO; reparameterized sites have
    pathwise gradients, others Pyro's score-function terms. Under ``scale_kl_pair`` the loss is exactly distortion +
    beta x rate; ``bound`` never contains beta.

    Args:
        num_particles: K, draws averaged for each datum.
        vectorize_particles: Draw them in one call, in an outermost plate.
        plate: Name of the data plate for ``bound``, where several enclose every site.
        **options: Pyro's further options of ``Trace_ELBO``.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, eq. 2; Ranganath, Gerrish, Blei, "Black Box
        Variational Inference", 2014.
    """

    def bound(
        self,
        model: Program,
        guide: Program,
        *args: Any,
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        **kwargs: Any,
    ) -> Tensor:
        """The ELBO of each datum, from ``num_particles`` draws.

        Args:
            model: A Pyro model whose data lie in one plate.
            guide: Its guide.
            *args: What both take.
            plate: Name of the data plate, where several enclose every site; default: that of the constructor.
            outer_scale: See ``log_weights``.
            **kwargs: Likewise.

        Returns:
            Shape ``(B,)``, nats, higher is better; unbiased, no KL weight and no N/B in it.

        Raises:
            ValueError: If model and guide give no weights for each datum, see ``log_weights``.
        """
        draws = ProposalDraws(model, guide, args, kwargs, plate or self.plate, outer_scale, self.vectorize_particles)
        terms = draws.first if self.num_particles == 1 else draws(self.num_particles)
        return terms.log_w.mean(0)

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Terms:
        loss, distortion, rate = _Sum(), _Sum(), _Sum()
        for _, site in sample_sites(model_trace):
            loss.subtract(site["log_prob_sum"])
            if not is_auxiliary_loss(site):
                (distortion if site["is_observed"] else rate).subtract(_true_sum(site))
        for _, site in sample_sites(guide_trace):
            if is_auxiliary_loss(site):
                loss.add(site["log_prob_sum"])
            elif not site["is_observed"]:  # what the guide observes is no draw
                loss.add(site["log_prob_sum"])
                rate.add(_true_sum(site))
        value = loss.value()
        if not all(_is_reparameterized(site) for _, site in drawn_sites(guide_trace)):
            surrogate = _surrogate(model_trace, guide_trace)
            value = value.detach() + (surrogate - surrogate.detach())
        return Terms(value, distortion.value(value), rate.value(value))


def _surrogate(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """Pyro's surrogate of the loss, with score-function terms; unlike Pyro's, by tensors alone, so that it can be captured."""
    total, log_r = _Sum(), None
    for _, site in sample_sites(model_trace):
        total.subtract(site["log_prob_sum"])
    for _, site in sample_sites(guide_trace):
        if site["is_observed"]:
            if is_auxiliary_loss(site):
                total.add(site["log_prob_sum"])
            continue
        parts = site["score_parts"]
        if not is_identically_zero(parts.entropy_term):
            total.add(parts.entropy_term.sum())
        if not is_identically_zero(parts.score_function):
            log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
            total.subtract((log_r.sum_to(site["cond_indep_stack"]) * parts.score_function).sum())
    return total.value()


class _Sum:
    """A running sum of tensors that begins with its first term: adding to 0 would cost a step of the backward pass."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, term: Tensor) -> None:
        self._total = term if self._total is None else self._total + term

    def subtract(self, term: Tensor) -> None:
        self._total = -term if self._total is None else self._total - term

    def value(self, like: Tensor | None = None) -> Tensor:
        """The sum; without any term, 0 on the device of ``like``."""
        if self._total is not None:
            return self._total
        return torch.zeros(()) if like is None else torch.zeros_like(like.detach())


def _is_reparameterized(site: Site) -> bool:
    return is_identically_zero(site["score_parts"].score_function)


class TraceMeanFieldELBO(_Bound, pyro.infer.TraceMeanField_ELBO):
    r"""The evidence lower bound, the KL in closed form where there is one.

    .. math:: \mathcal L(x) = E_{q(z|x)}[\log p(x|z)] - \sum_s KL(q(z_s|x) \| p(z_s)) \le \log p(x)

    A ``pyro.infer.TraceMeanField_ELBO``, with its options and its condition: no latent site's parents in the model may
    descend from it in the guide. Where a pair of distributions has no closed form, the term is sampled. Lower variance
    than :class:`TraceELBO` away from the optimum, higher near it. Under ``scale_kl_pair`` the loss is exactly
    distortion + beta x rate.

    Args:
        num_particles: K, draws averaged for each datum.
        vectorize_particles: Draw them in one call, in an outermost plate.
        plate: Name of the data plate for ``bound``, where several enclose every site.
        **options: Pyro's further options of ``TraceMeanField_ELBO``.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, eq. 7 and appendix B.
    """

    def bound(
        self,
        model: Program,
        guide: Program,
        *args: Any,
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        **kwargs: Any,
    ) -> Tensor:
        """The ELBO of each datum, from ``num_particles`` draws.

        Args:
            model: A Pyro model whose data lie in one plate.
            guide: Its guide, of mean-field structure.
            *args: What both take.
            plate: Name of the data plate, where several enclose every site; default: that of the constructor.
            outer_scale: See ``log_weights``.
            **kwargs: Likewise.

        Returns:
            Shape ``(B,)``, nats, higher is better; unbiased, no KL weight and no N/B in it.

        Raises:
            ValueError: If model and guide give no terms for each datum, see ``log_weights``.
        """
        total: Any = 0.0
        particles = 0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            check_match(model_trace, guide_trace)
            check_kl_scales(model_trace, guide_trace)
            if outer_scale == "refuse":
                check_scales(model_trace, guide_trace)
            layout = find_layout(model_trace, guide_trace, plate or self.plate)
            value: Any = 0.0
            for name, site in sample_sites(model_trace):
                if is_auxiliary_loss(site):
                    continue
                term = site_log_prob(site) if site["is_observed"] else -site_kl(site, guide_trace.nodes[name])
                value = value + layout.per_datum(term)
            for _, site in auxiliary_sites(model_trace, guide_trace):
                value = value - layout.per_datum(site_log_prob(site))
            total = total + value.sum(0)
            particles += value.shape[0]
        return total / particles

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Terms:
        loss, distortion, rate = _Sum(), _Sum(), _Sum()
        for name, site in sample_sites(model_trace):
            if site["is_observed"]:
                loss.subtract(site["log_prob_sum"])
                if not is_auxiliary_loss(site):
                    distortion.subtract(_true_sum(site))
                continue
            if name not in guide_trace.nodes:
                check_match(model_trace, guide_trace)
            guide_site = guide_trace.nodes[name]
            _check_reparameterized(name, guide_site)
            kl = site_kl(site, guide_site)
            loss.add(scale_and_mask(kl, scale=guide_site["scale"]).sum())
            rate.add(kl.detach().sum())
        for name, guide_site in auxiliary_sites(model_trace, guide_trace):
            _check_reparameterized(name, guide_site)
            loss.add(guide_site["log_prob_sum"])
            rate.add(_true_sum(guide_site))
        for _, guide_site in sample_sites(guide_trace):
            if is_auxiliary_loss(guide_site):
                loss.add(guide_site["log_prob_sum"])
        value = loss.value()
        return Terms(value, distortion.value(value), rate.value(value))


def site_kl(site: Site, guide_site: Site) -> Tensor:
    """KL of a latent site, masked, without scales, in closed form where there is one, else from the draw."""
    kl = closed_kl(guide_site["fn"], site["fn"])
    if kl is None:
        return site_log_prob(guide_site) - site_log_prob(site)
    return scale_and_mask(kl.expand(guide_site["fn"].batch_shape), mask=guide_site["mask"])


def closed_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q || p) in closed form, shape of q's batch; None where there is none.

    Nor is there one of a ``Delta``: the ``log_density`` that it carries, by which Pyro's autoguides tell the Jacobian of
    a draw, enters no formula.
    """
    if base_name(q) == "Delta":
        return None
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def auxiliary_sites(model_trace: Trace, guide_trace: Trace) -> list[tuple[str, Site]]:
    """The sites that the guide draws and the model does not know."""
    return [(n, s) for n, s in drawn_sites(guide_trace) if n not in model_trace.nodes and not is_auxiliary_loss(s)]


def _check_reparameterized(name: str, site: Site) -> None:
    if not _is_reparameterized(site):
        raise ValueError(
            f"mean-field: expected a reparameterized distribution at site {name!r}, got {type(site['fn']).__name__}; "
            "use elbo('trace'), which has score-function gradients."
        )
