from __future__ import annotations

import math

import pytest
import torch

import pyro_vae.testing.__main__ as selftest
from pyro_vae.testing.selftest.linear_gaussian import LIMIT, Line, LinearGaussianVAE, hermite, worst
from pyro_vae.testing.selftest.mixtures import Labelled, rate_parts
from pyro_vae.testing.selftest.objectives import CASES, thermodynamic


def test_the_guides_divergence_is_a_closed_form():
    """The quadrature's ELBO is log p(x) less KL(q || posterior), which two normals have in closed form."""
    reference = LinearGaussianVAE(0.3, 1.4)
    x = reference.vae.sample(4)
    q, p = reference.q(x), reference.vae.exact_posterior(x)
    kl = torch.distributions.kl_divergence(q, p).detach()
    torch.testing.assert_close(kl, torch.full((4,), reference.kl, dtype=torch.float64))
    elbo = reference.expected(lambda log_w: log_w.mean(0), 1, x)
    torch.testing.assert_close(elbo, reference.vae.log_px(x) - kl)


def test_the_quadrature_has_converged(monkeypatch):
    reference = LinearGaussianVAE()
    x = reference.vae.sample(2)
    bounds = []
    for nodes in (8, 12):
        monkeypatch.setattr("pyro_vae.testing.selftest.linear_gaussian.NODES", nodes)
        bounds.append(torch.stack([reference.expected(c.value, c.draws, x) for c in CASES.values()]).detach())
    assert float((bounds[0] - bounds[1]).abs().max()) < 1e-4


def test_rates_of_the_guide_are_a_closed_form():
    """Against the quadrature of two dimensions: E log q - log p(z), and by unit where units are independent."""
    for kind in ("full", "units"):
        reference = LinearGaussianVAE(kind=kind)
        x = reference.vae.sample(4)
        grid, shares = hermite(2, 6)
        loc, root = reference.normal(x)
        z = loc + (root @ grid[:, None, :, None]).squeeze(-1)
        exact = (shares[:, None] * (reference.q(x).log_prob(z) - reference.vae.prior().log_prob(z))).sum(0)
        torch.testing.assert_close(reference.rate(x), exact)
    torch.testing.assert_close(reference.rates(x).sum(-1), exact)


@pytest.mark.parametrize("estimator", ["all", "even"])
def test_the_parts_of_the_rate_have_converged_and_sum_to_it(estimator, monkeypatch):
    reference = LinearGaussianVAE()
    x = reference.vae.sample(5)
    parts = rate_parts(reference, x, estimator)
    torch.testing.assert_close(parts.sum(), reference.rate(x).mean())
    monkeypatch.setattr("pyro_vae.testing.selftest.mixtures.CODE_NODES", 40)
    torch.testing.assert_close(parts, rate_parts(reference, x, estimator), rtol=0, atol=1e-4)


def test_the_labelled_bound_is_a_sum_of_integrals():
    """The closed form against quadrature over z for each label."""
    labelled = Labelled()
    x = labelled.reference.vae.sample(4)
    log_q = labelled.log_q(x)
    away = (x[:, None] - labelled.shifts).transpose(0, 1)
    inner = torch.stack([labelled.reference.expected(lambda log_w: log_w.mean(0), 1, each) for each in away], -1)
    exact = (log_q.exp() * (labelled.logits.log_softmax(0) + inner - log_q)).sum(-1)
    torch.testing.assert_close(labelled.elbo(x), exact)


def test_the_thermodynamic_path_ends_at_the_evidence():
    """One interval is the ELBO; a fine partition is log p(x), which is the integral of E[log w] over the path."""
    reference = LinearGaussianVAE()
    x = reference.vae.sample(3)
    torch.testing.assert_close(thermodynamic(reference, x, [0.0, 1.0]), reference.elbo(x))
    fine = [k / 400 for k in range(401)]
    left, right = thermodynamic(reference, x, fine), reference.vae.log_px(x)
    assert bool((left < right).all())
    torch.testing.assert_close(left, right, rtol=0, atol=2e-3)


def test_the_line_farthest_off_is_shown():
    lines = [Line("a", "b", 0.0, off, 1.0) for off in (1.0, -3.0, 2.0)]
    assert worst(iter(lines)).found == -3.0
    assert worst(iter(lines)).worst_of == 3
    assert not worst(iter([*lines, Line("a", "b", 0.0, math.nan, 1.0)])).right


def test_a_line_is_wrong_on_either_side_and_without_a_number():
    assert Line("a", "b", exact=-3.0, found=-3.4, error=0.1).right
    assert not Line("a", "b", exact=-3.0, found=-3.5, error=0.1).right
    assert not Line("a", "b", exact=-3.0, found=-2.5, error=0.1).right
    assert not Line("a", "b", exact=-3.0, found=-3.0, error=math.nan).right
    assert Line("a", "b", exact=0.0, found=1e-10, error=0.0).right
    assert not Line("a", "b", exact=0.0, found=1e-8, error=0.0).right


def test_the_chance_of_a_false_alarm_is_that_of_students_t():
    """From draws: how often the mean of 5 normals is off by LIMIT of its own standard errors."""
    draws = torch.randn(1_000_000, 5, dtype=torch.float64)
    t = draws.mean(1) / (draws.std(1) / math.sqrt(5))
    found, exact = float((t.abs() > LIMIT).double().mean()), Line("a", "b", 0.0, 0.0, 1.0, freedom=4).chance
    assert abs(found - exact) < 4.6 * math.sqrt(exact / 1_000_000)
    assert Line("a", "b", 0.0, 0.0, 1.0, worst_of=18).chance == pytest.approx(18 * 4.2e-6, rel=0.01)
    assert Line("a", "b", 0.0, 0.0, 0.0).chance == 0


def test_the_command_prints_the_table(capsys, monkeypatch):
    lines = [Line("iwae", "bound, nats", -8.0, -8.01, 0.01), Line("rws", "bound, nats", -8.0, -9.0, 0.01)]
    monkeypatch.setattr("pyro_vae.testing.selftest.table.measure", lambda samples, seed: lines)
    assert selftest._figures(100, 0) == 1
    out = capsys.readouterr().out
    assert "1 of 2 figures agree with the exact value; by chance, one correct table in 118346" in out
    assert "FAIL rws" in out
