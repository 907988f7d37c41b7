"""The law ``likelihood``: densities are normalized and deterministic, values in their support."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae.inference.program.sites import is_auxiliary_loss, sample_sites
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.numerics.normalization import elementary, total_mass
from pyro_vae.testing.numerics.quadrature import NoMassError
from pyro_vae.testing.subject import Subject, is_factor, observed_sites, same, tolerance

LAW = "likelihood"


def check_values(subject: Subject, ledger: Ledger) -> None:
    """Check that observed values lie in their support; refuse ``pyro.factor`` sites."""
    for name, site in sample_sites(subject.model_trace):
        if is_factor(site) and not is_auxiliary_loss(site):
            figures = f"pyro.factor adds {float(site['fn'].log_factor.mean()):.3g} nats that no density accounts for"
            causes = (
                "a penalty or classifier term as a factor; remove the factor, or sample the term with "
                "infer={'auxiliary_loss': True}"
            )
            ledger.breaks(LAW, f"site {name!r} of the model", figures, causes)
    for name, site in observed_sites(subject.model_trace):
        try:
            inside = _inside(site["fn"].support, site["value"])
        except (NotImplementedError, AttributeError):
            ledger.skips(LAW, f"site {name!r}", f"{type(site['fn']).__name__} defines no support")
            continue
        if not bool(inside.all()):
            kind = type(elementary(site["fn"])).__name__
            figures = f"{100 * (1 - float(inside.double().mean())):.0f} % of the data lie outside the support of {kind}"
            causes = "grey pixels under a Bernoulli (binarize them, or use a ContinuousBernoulli), or unscaled data"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)


def _inside(support: Any, value: Tensor) -> Tensor:
    """Return True for each value in the support and each NaN."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    inside = support.check(value)
    return inside | value.isnan() if inside.shape == value.shape else inside


def check_determinism(subject: Subject, ledger: Ledger) -> bool:
    """Check that x and z determine all log-probabilities; return True if so.

    An observed value must not change between calls, or with z.
    """
    values, _ = subject.draw()
    one, other = subject.evaluate(values), subject.evaluate(values)
    for name, value in one.observed.items():
        if not same(value, other.observed[name]):
            figures = "the observed value changes between calls with the same arguments"
            causes = "noise added to the data inside the model, hidden from the guide; add the noise before the call"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)
            return False
    for name, term in one.parts().items():
        change = float((other.parts()[name] - term).abs().max())
        if not change <= tolerance(term):
            figures = f"its log-probability at the same x and z changes by {change:.3g} nats between calls"
            causes = "dropout in train mode (call .eval()), or random numbers drawn outside a sample site"
            ledger.breaks(LAW, name, figures, causes)
            return False
    other_values, _ = subject.draw()
    for name, value in subject.evaluate(other_values).observed.items():
        if not same(value, one.observed[name]):
            figures = "the observed value changes with the latent value"
            causes = "obs= is a reconstruction, or another value computed from z, instead of the data"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)
            return False
    ledger.holds(LAW, "all sites", "the same x and z give the same log-probabilities")
    return True


def check_mass(subject: Subject, ledger: Ledger) -> None:
    """Check that the distribution of each site sums or integrates to 1."""
    causes = "a log_prob that is scaled, leaves out its normalizer, or has a wrong Jacobian"
    for trace, whose in ((subject.model_trace, "model"), (subject.guide_trace, "guide")):
        for name, site in sample_sites(trace):
            where = f"site {name!r} of the {whose}"
            if is_factor(site) or (whose == "guide" and site["infer"].get("is_auxiliary")):
                continue
            try:
                mass = total_mass(site["fn"], site["value"])
            except NoMassError as reason:
                ledger.skips(LAW, where, str(reason))
                continue
            except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
                kind = type(elementary(site["fn"])).__name__
                why = f"its log_prob or sample raises {type(error).__name__}: {error}"
                ledger.skips(LAW, where, f"the total mass of {kind} cannot be computed: {why}")
                continue
            worst = float(mass.flatten()[(mass - 1).abs().argmax()])
            if abs(worst - 1) > 0.01 or worst != worst:
                kind = type(elementary(site["fn"])).__name__
                ledger.breaks(LAW, where, f"{kind} has a total mass of {worst:.4g}", causes)
            else:
                ledger.holds(LAW, where, f"its total mass is {worst:.4g}")
