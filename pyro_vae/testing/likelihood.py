"""Law ``likelihood``: densities are normalized, functions of their value and parents, and read the data once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.layout import is_auxiliary_loss, sample_sites
from pyro_vae.testing.normalization import NoMassError, total_mass
from pyro_vae.testing.program import Subject, is_factor, latent_sites, observed_sites, same, tolerance
from pyro_vae.testing.report import Ledger

LAW = "likelihood"
#: How many values of one datum are tried to see whether a likelihood that reads its data sums to one.
MOST_VALUES = 256


def check_values(subject: Subject, ledger: Ledger) -> None:
    """Observed values lie in the support of their likelihood; factors are no likelihood."""
    for name, site in sample_sites(subject.model_trace):
        if is_factor(site) and not is_auxiliary_loss(site):
            figures = f"pyro.factor adds {float(site['fn'].log_factor.mean()):.3g} nats that no density accounts for"
            causes = "a penalty or classifier term as a factor; leave it out, or sample it with infer={'auxiliary_loss': True}"
            ledger.breaks(LAW, f"site {name!r} of the model", figures, causes)
    for name, site in observed_sites(subject.model_trace):
        try:
            inside = _inside(site["fn"].support, site["value"])
        except (NotImplementedError, AttributeError):
            ledger.skips(LAW, f"site {name!r}", f"{type(site['fn']).__name__} does not name its support")
            continue
        if not bool(inside.all()):
            kind = type(_innermost(site["fn"])).__name__
            figures = f"{100 * (1 - float(inside.double().mean())):.0f} % of the data lie outside the support of {kind}"
            causes = "grey pixels under a Bernoulli (binarize them, or use a ContinuousBernoulli), or data that are not scaled"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)


def _inside(support: Any, value: Tensor) -> Tensor:
    """Where a value lies in a support, element by element if it can be told; NaN stands for a missing, masked one."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    inside = support.check(value)
    return inside | value.isnan() if inside.shape == value.shape else inside


def _innermost(fn: object) -> object:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def check_determinism(subject: Subject, ledger: Ledger) -> bool:
    """The same x and z get the same terms at each call; whether they do."""
    values, _ = subject.draw()
    one, other = subject.evaluate(values), subject.evaluate(values)
    for name, value in one.observed.items():
        if not same(value, other.observed[name]):
            figures = "the observed value changes from call to call while the arguments stay"
            causes = "noise added to the data inside the model, where the guide does not see it; add it before the call"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)
            return False
    for name, term in one.parts().items():
        change = float((other.parts()[name] - term).abs().max())
        if not change <= tolerance(term):
            figures = f"its log-probability at the same x and z changes by {change:.3g} nats from call to call"
            causes = "dropout in train mode (call .eval()), or random numbers that are no sample site"
            ledger.breaks(LAW, name, figures, causes)
            return False
    other_values, _ = subject.draw()
    for name, value in subject.evaluate(other_values).observed.items():
        if not same(value, one.observed[name]):
            figures = "the observed value moves with the latent one"
            causes = "obs= given a reconstruction, or a value computed from z, instead of the data"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)
            return False
    ledger.holds(LAW, "all sites", "the same x and z get the same terms")
    return True


def check_reading(
    subject: Subject, feeds: dict[int | str, set[str]], conditional: Collection[str], ledger: Ledger
) -> bool:
    """With every site drawn or given, the data arguments move no term; whether simulation follows the density.

    A site may read an argument whose value was observed before it in the model (teacher forcing).
    """
    if not subject.data or subject.layout.size < 2:
        ledger.skips(LAW, "the data", "no data argument was found, or one row only; name it by data=")
        return False
    trace = subject.traced(subject.model, subject.call, subject.index, unobserved=True)
    values = {n: s["value"] for n, s in sample_sites(trace) if not s["is_observed"]}
    order, places = torch.arange(subject.layout.size).roll(1), [n for n, _ in sample_sites(subject.model_trace)]
    clean = True
    for key in subject.data:
        call = subject.reordered(order, (key,))
        after = subject.traced(subject.model, call, subject.index | values, unobserved=True)
        for name in _moved(trace, after):
            clean = False
            earlier = [s for s in feeds[key] if places.index(s) < places.index(name)]
            if name not in conditional and not earlier:
                _report_reading(subject, name, ledger)
    if clean:
        ledger.holds(LAW, "the data", "no term of the model reads them but through its observed value")
    return clean


def _moved(before: Trace, after: Trace) -> list[str]:
    terms = []
    for trace in (before, after):
        sites = [(n, s) for n, s in sample_sites(trace) if not is_auxiliary_loss(s)]
        terms.append({n: s["fn"].log_prob(s["value"]) for n, s in sites})
    return [n for n, t in terms[0].items() if not float((terms[1][n] - t).abs().max()) <= tolerance(t)]


def _report_reading(subject: Subject, name: str, ledger: Ledger) -> None:
    where = f"site {name!r} of the model"
    if name in latent_sites(subject.model_trace):
        figures = "its prior changes with the data it explains"
        causes = (
            "an encoder's output used in the model; p(z) may read covariates, not x, unless declared conditional=[...]"
        )
    else:
        mass = _mass_over_data(subject, name)
        if mass is not None and float((mass - 1).abs().max()) < 0.01:
            ledger.holds(LAW, where, "it reads its data, and sums to 1 over all values, as an autoregressive one does")
            return
        shown = "" if mass is None else f", and sums to {float(mass.flatten()[0]):.4g} over all values"
        figures = f"its parameters change with the value it scores{shown}"
        causes = "a skip connection from the data, or a scale fitted to them; declare an autoregressive one conditional=[...]"
    ledger.breaks(LAW, where, figures, causes)


def _mass_over_data(subject: Subject, name: str) -> Tensor | None:
    """Sum of p(x|z) over all x where a datum is a few bits; the program runs once for each."""
    site, key = dict(observed_sites(subject.model_trace))[name], subject.slots.get(name)
    base = _innermost(site["fn"])
    if key is None or subject.picked is not None or not getattr(base, "has_enumerate_support", False):
        return None
    old = subject.call.tensors()[key]
    bits = old[0].numel()
    choices = base.enumerate_support(expand=False).flatten()  # type: ignore[attr-defined]
    if len(choices) ** bits > MOST_VALUES:
        return None
    values, _ = subject.draw()
    total: Tensor | float = 0.0
    for row in torch.cartesian_prod(*[choices] * bits).reshape(-1, *old[0].shape):
        call = subject.call.put({key: row.to(old.dtype).expand(old.shape).clone()})
        total = total + subject.evaluate(values, call).model[name].double().exp()
    return torch.as_tensor(total)


def check_mass(subject: Subject, ledger: Ledger) -> None:
    """Each site's distribution sums or integrates to one, where that can be had."""
    causes = "a log_prob that is scaled, leaves out its normalizer, or has a wrong Jacobian"
    for trace, whose in ((subject.model_trace, "model"), (subject.guide_trace, "guide")):
        for name, site in sample_sites(trace):
            where = f"site {name!r} of the {whose}"
            if is_factor(site) or (whose == "guide" and site["infer"].get("is_auxiliary")):
                continue
            try:
                mass = total_mass(site["fn"])
            except NoMassError as reason:
                ledger.skips(LAW, where, str(reason))
                continue
            worst = float(mass.flatten()[(mass - 1).abs().argmax()])
            if abs(worst - 1) > 0.01 or worst != worst:
                ledger.breaks(
                    LAW, where, f"{type(_innermost(site['fn'])).__name__} has a total mass of {worst:.4g}", causes
                )
            else:
                ledger.holds(LAW, where, f"its total mass is {worst:.4g}")
