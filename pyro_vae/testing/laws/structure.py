"""The law ``structure``: model and guide agree on sites, shapes, supports, plates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae.inference.program.data_plate import find_data_plate
from pyro_vae.inference.program.sites import Site, is_subsample, plates_of, sample_sites
from pyro_vae.inference.program.traces import Program
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.subject import Call, Subject, latent_sites, observed_sites

LAW = "structure"
RUN_CAUSES = (
    "shapes that do not fit (a missing .to_event(1), a plate of the wrong size or dim), a dtype other than the network's, or "
    "a site in only one of model and guide"
)


def inspect(model: Program, guide: Program, call: Call, plate: str | None, ledger: Ledger) -> Subject | None:
    """Run model and guide once and compare their sites.

    Returns:
        The subject on which the other laws are checked; None if the law ``structure`` is broken.
    """
    try:
        guide_trace = poutine.trace(guide).get_trace(*call.args, **call.kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*call.args, **call.kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        ledger.breaks(LAW, "the first run", f"it raises {type(error).__name__}: {error}", RUN_CAUSES)
        return None
    _refuse(model_trace, guide_trace)
    _check_names(model_trace, guide_trace, ledger)
    for name, site in latent_sites(guide_trace).items():
        _check_site(name, latent_sites(model_trace).get(name), site, ledger)
    _check_delta(guide_trace, ledger)
    if ledger.any_broken:
        return None
    return _with_data_plate(Subject(model, guide, call, None, {}, model_trace, guide_trace), plate, ledger)  # type: ignore[arg-type]


def _with_data_plate(subject: Subject, plate: str | None, ledger: Ledger) -> Subject | None:
    traces = (subject.model_trace, subject.guide_trace)
    try:
        for trace in traces:
            prune_subsample_sites(trace).compute_log_prob()
            for _, site in sample_sites(trace):
                check_site_shape(site, math.inf)
        data_plate = find_data_plate(*traces, plate)
    except (RuntimeError, ValueError) as error:
        causes = (
            "a missing `with pyro.plate('data', len(x)):`, a missing .to_event, or a .to_event that includes the batch"
        )
        ledger.breaks(LAW, "the plates", str(error).strip(), causes)
        return None
    index = {n: s["value"] for t in traces for n, s in t.nodes.items() if s["type"] == "sample" and is_subsample(s)}
    for trace in traces:
        for name, site in sample_sites(trace):
            if not bool(torch.isfinite(site["log_prob"]).all()):
                causes = "a scale of 0 or below, a value outside the support, or an overflow of exp"
                ledger.breaks(LAW, f"site {name!r}", "its log-probability is not finite", causes)
    if ledger.any_broken:
        return None
    ledger.holds(
        LAW, "all sites", f"{len(latent_sites(subject.model_trace))} latent sites in plate {data_plate.plate!r}"
    )
    rows = _row_arguments(subject.call, data_plate.plate, data_plate.size, observed_sites(subject.model_trace)[0][1])
    return replace(subject, data_plate=data_plate, index=index, rows=rows)


def _row_arguments(call: Call, plate: str, size: int, site: Site) -> tuple[int | str, ...]:
    full = plates_of(site)[plate].full_size
    lengths = {key: len(t) for key, t in call.tensors().items() if t.dim()}
    return tuple(key for key, n in lengths.items() if n == full) or tuple(k for k, n in lengths.items() if n == size)


def _refuse(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse sound programs that have no importance weight for each single datum."""
    theirs = latent_sites(guide_trace)
    for name, site in latent_sites(model_trace).items():
        if name not in theirs and site["infer"].get("enumerate"):
            raise ValueError(
                f"check_elbo_bounds: expected sampled sites, got {name!r} marked for enumeration in the model only; "
                "remove the mark and add the site to the guide."
            )
    for name, site in theirs.items():
        if site["infer"].get("is_auxiliary") and not plates_of(site):
            raise ValueError(
                f"check_elbo_bounds: expected a guide with independent data, got the auxiliary site {name!r} outside every "
                "plate; use AutoNormal or an amortized guide."
            )


def _check_names(model_trace: Trace, guide_trace: Trace, ledger: Ledger) -> None:
    ours, theirs = latent_sites(model_trace), latent_sites(guide_trace)
    causes = "a name spelt differently in model and guide, or a site added to only one of them"
    for name in ours.keys() - theirs.keys():
        known = f"it is in the model only; the guide has {sorted(theirs)}"
        ledger.breaks(LAW, f"latent site {name!r}", known, causes)
    for name, site in theirs.items():
        if name not in ours and not site["infer"].get("is_auxiliary", False):
            known = f"it is in the guide only; the model has {sorted(ours)}"
            ledger.breaks(LAW, f"latent site {name!r}", known, f"{causes}; mark a deliberate extra site is_auxiliary")
    for name, site in sample_sites(guide_trace):
        if site["is_observed"] and not site["infer"].get("is_auxiliary", False):
            figures = "the guide observes it: objectives of this package ignore such a site, Pyro's own objectives subtract it"
            ledger.breaks(LAW, f"site {name!r} of the guide", figures, "obs= copied from the model into the guide")


def _check_site(name: str, ours: Site | None, theirs: Site, ledger: Ledger) -> None:
    """Compare the shapes, plates and supports of a latent site.

    ``ours`` is the site in the model (None if missing there), ``theirs`` the site in the guide.
    """
    if ours is None:
        return
    where = f"latent site {name!r}"
    p, q = ours["fn"], theirs["fn"]
    if p.event_shape != q.event_shape:
        figures = f"its event shape is {tuple(p.event_shape)} in the model and {tuple(q.event_shape)} in the guide"
        ledger.breaks(LAW, where, figures, ".to_event missing in one of them, or two latent sizes")
        return
    inside, outside = plates_of(ours), plates_of(theirs)
    known = [{n: (f.dim, f.size) for n, f in plates.items()} for plates in (inside, outside)]
    if known[0] != known[1]:
        figures = f"its plates (dim, size) are {known[0]} in the model and {known[1]} in the guide"
        ledger.breaks(LAW, where, figures, "a plate in only one of them, or with two names or sizes")
        return
    if p.batch_shape != q.batch_shape:
        figures = f"its batch shape is {tuple(p.batch_shape)} in the model and {tuple(q.batch_shape)} in the guide"
        ledger.breaks(LAW, where, figures, "a missing .to_event, or a parameter with an extra dimension")
        return
    if bool(theirs["value"].isnan().any()):
        ledger.breaks(
            LAW, where, "the guide draws NaN", "parameters that became NaN in training, or a scale of 0 or below"
        )
    elif not _is_delta(q):
        _check_support(where, p, q, ledger)


def _check_support(where: str, p: TorchDistributionMixin, q: TorchDistributionMixin, ledger: Ledger) -> None:
    causes = "a guide without the transform of the latent's range (LogNormal for positive, logistic for (0, 1))"
    ranges = [_range(fn) for fn in (p, q)]
    if None not in ranges and not all(_equal(a, b) for a, b in zip(*ranges, strict=True)):
        shown = [_show(r) for r in ranges]
        ledger.breaks(LAW, where, f"its support is {shown[0]} in the model and {shown[1]} in the guide", causes)
        return
    try:
        for whose, source, other, target in (("guide", q, "model", p), ("model", p, "guide", q)):
            draws = source.sample((100,))
            outside = 1 - float(target.support.check(draws).double().mean())
            if outside > 0:
                figures = f"{100 * outside:.0f} % of the {whose}'s draws lie outside the {other}'s support"
                ledger.breaks(LAW, where, figures, causes)
                return
    except NotImplementedError:
        ledger.skips(LAW, where, f"{type(q).__name__} or {type(p).__name__} defines no support")


def _range(fn: TorchDistributionMixin) -> tuple[bool, Any, Any] | None:
    """Return a support's (discrete, lower, upper); None if it has no bounds."""
    try:
        support = fn.support
    except NotImplementedError:
        return None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    bounds = {"_Real": (-math.inf, math.inf), "_Boolean": (0, 1), "_UnitInterval": (0.0, 1.0)}.get(
        type(support).__name__
    )
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if bounds is None and low is None and high is None:
        return None
    low, high = bounds or (-math.inf if low is None else low, math.inf if high is None else high)
    return bool(support.is_discrete), low, high


def _equal(one: Any, other: Any) -> bool:
    tensors = [torch.as_tensor(v, dtype=torch.float64) for v in (one, other)]
    return bool(torch.isclose(*torch.broadcast_tensors(*tensors)).all())


def _show(found: Any) -> str:
    whole, *bounds = found
    low, high = (float(b.flatten()[0]) if isinstance(b, Tensor) else float(b) for b in bounds)
    return f"the {'integers' if whole else 'reals'} from {low:g} to {high:g}"


def _is_delta(fn: TorchDistributionMixin) -> bool:
    while hasattr(fn, "base_dist") and not isinstance(fn, Delta):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _check_delta(guide_trace: Trace, ledger: Ledger) -> None:
    sites = latent_sites(guide_trace)
    # Pyro's autoguides draw an auxiliary site and compute other sites from it: Delta sites whose log_density is the Jacobian.
    if any(s["infer"].get("is_auxiliary", False) for s in sites.values()):
        return
    for name, site in sites.items():
        if _is_delta(site["fn"]):
            figures = "the guide is a Delta, which has no density: log p(x, z) at one point bounds nothing"
            causes = "AutoDelta or a point estimate as guide; use AutoNormal or a distribution with a scale"
            ledger.breaks(LAW, f"latent site {name!r}", figures, causes)
