"""The objective ``trace``: the ELBO with every term estimated from draws."""

from __future__ import annotations

import pyro
from pyro.distributions.util import is_identically_zero
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.objectives.bound import Bound, Terms
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.sites import Site, drawn_sites, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.sums import RunningSum, true_sum


class TraceELBO(Bound, pyro.infer.Trace_ELBO):
    r"""The evidence lower bound (ELBO), with every term estimated from draws.

    .. math:: \mathcal L(x) = E_{q(z|x)}[\log p(x, z) - \log q(z|x)] \le \log p(x)

    This objective works with any model and guide. The objective is a lower bound; its estimate and its gradient are
    unbiased. Reparameterized sites have pathwise gradients; other sites have Pyro's score-function terms. With
    ``scale_kl_pair``, the loss is exactly distortion + beta * rate.

    Args:
        *args: See ``pyro.infer.Trace_ELBO``; ``num_particles`` is K, the number of draws averaged for each datum.
        plate: Name of the data plate; needed if several plates enclose every site.
        **options: See ``pyro.infer.Trace_ELBO``.

    References:
        Kingma, Welling, "Auto-Encoding Variational Bayes", 2014, eq. 2; Ranganath, Gerrish, Blei, "Black Box
        Variational Inference", 2014.
    """

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Terms:
        loss, distortion, rate = RunningSum(), RunningSum(), RunningSum()
        for name, site in sample_sites(model_trace):
            loss.subtract(site["log_prob_sum"])
            if not is_auxiliary_loss(site):
                if not site["is_observed"] and name not in guide_trace.nodes:
                    check_match(model_trace, guide_trace)
                (distortion if site["is_observed"] else rate).subtract(true_sum(site))
        for _, site in sample_sites(guide_trace):
            if is_auxiliary_loss(site):
                loss.add(site["log_prob_sum"])
            elif not site["is_observed"]:  # a site that the guide observes is not a draw
                loss.add(site["log_prob_sum"])
                rate.add(true_sum(site))
        value = loss.value()
        if not all(is_reparameterized(site) for _, site in drawn_sites(guide_trace)):
            surrogate = _surrogate(model_trace, guide_trace)
            value = value.detach() + (surrogate - surrogate.detach())
        return Terms(value, distortion.value(value), rate.value(value))


def _surrogate(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """Compute the surrogate loss of Pyro's ``Trace_ELBO``, using only tensors.

    The score-function terms are the same as in Pyro. Pyro calls ``.item()``, which a graph cannot capture.
    """
    total, log_r = RunningSum(), None
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


def is_reparameterized(site: Site) -> bool:
    """Return True if a site of the guide needs no score-function term."""
    return is_identically_zero(site["score_parts"].score_function)
