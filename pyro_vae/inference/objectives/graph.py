"""The objective ``graph``: the ELBO with low-variance score-function terms."""

from __future__ import annotations

from collections import defaultdict

import pyro
import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.inference.capture.side_effects import BASELINE
from pyro_vae.inference.objectives.bound import Bound, Terms
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.sites import Site, is_auxiliary_loss, sample_sites, site_log_prob
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.system.imports import capturing


class TraceGraphELBO(Bound, pyro.infer.TraceGraph_ELBO):
    r"""The evidence lower bound (ELBO) with low-variance score-function terms.

    .. math:: \mathcal L(x) = E_{q(z|x)}[\log p(x, z) - \log q(z|x)] \le \log p(x)

    Use this objective if sites of the guide are not reparameterized. The score of a draw is multiplied by the sum of
    the terms that depend on the draw, minus a baseline (``infer={"baseline": ...}``, as in Pyro). The objective is a
    lower bound; its estimate and its gradient are unbiased. If all sites are reparameterized, the objective equals
    ``TraceELBO``.

    Args:
        *args: See ``pyro.infer.TraceGraph_ELBO``; ``num_particles`` is K, the number of draws averaged for each datum.
        plate: Name of the data plate; needed if several plates enclose every site.
        **options: See ``pyro.infer.TraceGraph_ELBO``.

    References:
        Schulman et al., "Gradient Estimation Using Stochastic Computation Graphs", 2015.
    """

    #: For each term, the draws it depends on, found in the last eager run: a graph cannot capture provenance.
    _depends: dict[tuple[bool, str], frozenset[str]]

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        if not capturing():
            return pyro.infer.TraceGraph_ELBO._get_trace(self, model, guide, args, kwargs)
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Terms:
        traces = (True, model_trace), (False, guide_trace)
        if not capturing():
            self._depends = {(m, n): get_provenance(s["log_prob_sum"]) for m, t in traces for n, s in sample_sites(t)}
        costs: defaultdict[str, MultiFrameTensor] = defaultdict(MultiFrameTensor)
        elbo, distortion, rate, surrogate = (torch.zeros(()) for _ in range(4))
        for of_model, trace in traces:
            sign = 1.0 if of_model else -1.0
            for name, site in sample_sites(trace):
                if not of_model and site["is_observed"] and not is_auxiliary_loss(site):  # not drawn
                    continue
                if of_model and not site["is_observed"] and name not in guide_trace.nodes:
                    check_match(model_trace, guide_trace)
                total, log_prob = detach_provenance((site["log_prob_sum"], site["log_prob"]))
                entropy = (
                    log_prob if site["is_observed"] or of_model else detach_provenance(site["score_parts"].entropy_term)
                )
                elbo = elbo + sign * total.detach()
                if not is_identically_zero(entropy):
                    surrogate = surrogate + sign * entropy.sum()
                for draw in self._depends[of_model, name]:
                    costs[draw].add((site["cond_indep_stack"], sign * log_prob.detach()))
                if is_auxiliary_loss(site):
                    continue
                term = sign * detach_provenance(site_log_prob(site)).detach().sum()
                distortion, rate = (distortion - term, rate) if site["is_observed"] else (distortion, rate - term)
        for name, cost in costs.items():
            site = guide_trace.nodes[name]
            signal, fitted = _less_baseline(name, site, cost.sum_to(site["cond_indep_stack"]))
            score = detach_provenance(site["score_parts"].score_function)
            surrogate = surrogate + (score * signal.detach()).sum() - fitted
        return Terms(-elbo - (surrogate - surrogate.detach()), distortion, rate)


def _less_baseline(name: str, site: Site, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract a site's baseline from the cost of its draw.

    A baseline that is a running mean is updated in place, unlike in Pyro, since a captured training step always uses
    the same tensor.

    Returns:
        Cost minus baseline, in the shape of ``cost``; and the squared difference of cost and baseline, 0-dim, which
        fits ``nn_baseline`` or ``baseline_value`` (0 if the site has neither).
    """
    options = dict(site["infer"].get("baseline", {}))
    network, value = options.pop("nn_baseline", None), options.pop("baseline_value", None)
    given, running = options.pop("nn_baseline_input", None), options.pop("use_decaying_avg_baseline", False)
    decay = options.pop("baseline_beta", 0.9)
    if options:
        raise ValueError(
            f"site {name!r}: expected baseline options of pyro.infer.TraceGraph_ELBO, got {sorted(options)}; remove "
            f"{sorted(options)}."
        )
    if network is not None and value is not None:
        raise ValueError(
            f"site {name!r}: nn_baseline cannot be combined with baseline_value; remove nn_baseline or baseline_value."
        )
    baseline: float | Tensor = 0.0
    fitted = torch.zeros_like(cost.sum())
    if network is not None:
        baseline = network(_detached(given))
    elif value is not None:
        baseline = value
    if isinstance(baseline, Tensor):
        detached: Tensor = detach_provenance(baseline)
        _check_shape(name, cost, detached)
        baseline = detached
    if running:
        mean = pyro.param(BASELINE + name, torch.zeros_like(cost)).detach()
        _check_shape(name, cost, mean)
        baseline = baseline + mean.clone()
        mean.mul_(decay).add_(cost, alpha=1 - decay)
    if network is not None or value is not None:
        fitted = (cost - baseline).square().sum()
    return cost - baseline, fitted


def _check_shape(name: str, cost: Tensor, baseline: Tensor) -> None:
    if cost.shape != baseline.shape:
        raise ValueError(
            f"site {name!r}: expected a baseline of shape {tuple(cost.shape)}, got {tuple(baseline.shape)}; use batches of "
            "equal size, or a baseline with one number for each draw."
        )


def _detached(given: object) -> object:
    """Detach every tensor in the input of a baseline network."""
    return _pytree.tree_map(lambda x: detach_provenance(x).detach() if isinstance(x, Tensor) else x, given)
