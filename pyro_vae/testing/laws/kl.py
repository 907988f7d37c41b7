"""The law ``kl``: closed-form and sampled KL agree, and scales match."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.program.sites import Site, base_name, is_auxiliary_loss, sample_sites
from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.numerics.statistics import student_p
from pyro_vae.testing.subject import Subject, latent_sites, observed_sites, outer_scale

LAW = "kl"
CAUSES = (
    "a distribution whose log_prob does not fit its draws (a variance passed as a scale, a wrong Jacobian), or a "
    "closed form inherited from a class with another density"
)


def check_scales(subject: Subject, ledger: Ledger) -> None:
    """Check the scales by which log-probabilities are multiplied.

    A latent site must have the same scale in model and guide. The likelihood must have the scale 1, or the scale of all
    latent sites.
    """
    ours, theirs = latent_sites(subject.model_trace), latent_sites(subject.guide_trace)
    try:
        check_kl_scales(subject.model_trace, subject.guide_trace)
    except ValueError as error:
        ledger.breaks(LAW, "the KL weight", str(error), "scale_kl on one side only; use scale_kl_pair")
        return
    latent = {n: (_other_scale(s), _other_scale(theirs[n])) for n, s in ours.items() if n in theirs}
    for name, (model, guide) in latent.items():
        if abs(model - guide) > 1e-5 * max(abs(model), abs(guide)):
            figures = f"its scale is {model:.4g} in the model and {guide:.4g} in the guide"
            causes = "poutine.scale around only one of model and guide; use pyro_vae.handlers.scale_kl_pair(model, guide, beta)"
            ledger.breaks(LAW, f"latent site {name!r}", figures, causes)
            return
    common = {model for model, _ in latent.values()}
    for name, site in observed_sites(subject.model_trace):
        scale = outer_scale(site)
        if abs(scale - 1) > 1e-5 and (len(common) != 1 or abs(scale - common.copy().pop()) > 1e-5):
            figures = f"the likelihood has a scale of {scale:.4g}, and the KL a different scale"
            causes = "poutine.scale on the likelihood, so that nothing bounds log p(x); weight the KL by scale_kl_pair instead"
            ledger.breaks(LAW, f"site {name!r}", figures, causes)
            return
    ledger.holds(LAW, "the scales", "model and guide have the same scales")


def _other_scale(site: Site) -> float:
    """Return a site's scale without the factors that plates and ``scale_kl`` set."""
    scale = outer_scale(site)
    for beta in site.get("kl_scales", ()):
        mean = float(torch.as_tensor(beta, dtype=torch.float64).mean())
        scale = scale / mean if mean else 1.0
    return scale


def check_divergences(subject: Subject, num_samples: int, ledger: Ledger) -> None:
    r"""Compare each site's closed-form :math:`KL(q \| p)` with its sampled mean."""
    guide_trace = subject.traced(subject.guide, subject.call, subject.index)
    values = {n: s["value"] for n, s in latent_sites(guide_trace).items()}
    model_trace = subject.traced(subject.model, subject.call, subject.index | values)
    ours = dict(sample_sites(model_trace))
    for name, site in latent_sites(guide_trace).items():
        if name in ours and not is_auxiliary_loss(site):
            _check_site(subject, name, ours[name], site, num_samples, ledger)


def _check_site(subject: Subject, name: str, ours: Site, theirs: Site, num_samples: int, ledger: Ledger) -> None:
    """Compare a site's closed-form KL and entropy with their sampled means.

    ``ours`` is the site in the model, ``theirs`` the site in the guide.
    """
    p, q, where = ours["fn"], theirs["fn"], f"latent site {name!r}"
    if base_name(q) == "Delta":
        ledger.skips(LAW, where, "the guide has a Delta with the value of another site, so the KL has no closed form")
        return

    def log_q_and_p() -> tuple[Tensor, Tensor]:
        draws = q(torch.Size((num_samples,)))
        return q.log_prob(draws), p.log_prob(draws)

    def log_ratio() -> Tensor:
        log_q, log_p = log_q_and_p()
        return log_q - log_p

    try:
        log_ratio()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        ledger.skips(LAW, where, f"drawing {num_samples} values at once fails ({error})")
        return
    try:
        _compare(subject, "KL(q || p)", kl_divergence(q, p), log_ratio, theirs, ledger)
    except NotImplementedError:
        ledger.skips(LAW, where, f"no closed form of KL({base_name(q)} || {base_name(p)})")
    # Distributions without an entropy raise different errors.
    with contextlib.suppress(NotImplementedError, AttributeError):
        _compare(subject, "the entropy of q", q.entropy(), lambda: -log_q_and_p()[0], theirs, ledger)


def _compare(
    subject: Subject, what: str, analytic: Tensor, terms: Callable[[], Tensor], site: Site, ledger: Ledger
) -> None:
    """Test that a closed form is the mean of its sampled values.

    Args:
        subject: The program.
        what: Name of the quantity.
        analytic: The closed form, with the batch shape of the site.
        terms: Function that returns sampled values, shape ``(num_samples, *batch_shape)``.
        site: The guide's site.
        ledger: Collects the findings.
    """
    data_plate, shape = subject.data_plate, site["fn"].batch_shape
    exact = data_plate.per_datum(scale_and_mask(analytic.expand(shape), mask=site["mask"])).sum().double()

    def sums() -> Tensor:
        drawn = scale_and_mask(terms(), mask=site["mask"])
        return (
            data_plate.per_datum(drawn.reshape(len(drawn), *(1,) * (data_plate.nesting - len(shape)), *shape))
            .double()
            .sum(1)
        )

    sampled = sums()
    error = float(sampled.std() / len(sampled) ** 0.5)
    size = data_plate.size
    means = [float(exact) / size, float(sampled.mean()) / size]
    figures = f"{what} is {means[0]:.5g} in closed form, {means[1]:.5g} +- {error / size:.2g} sampled, nats per datum"
    rounding = 1e-4 * (1 + float(exact.abs()))
    p_value = student_p(sampled, float(exact)) if abs(float(sampled.mean() - exact)) > rounding else 1.0
    where = f"latent site {site['name']!r}"
    ledger.tests(LAW, where, p_value, figures, CAUSES, lambda: student_p(sums(), float(exact)))
