from __future__ import annotations

import math

import pytest
import torch

import pyro_vae.testing.__main__ as selftest
from pyro_vae.inference import IWAE, OBJECTIVES, STL
from pyro_vae.testing.yardstick import CASES, LEFT_OUT, Line, Yardstick, estimators, measure, objectives


def test_the_guides_divergence_is_a_closed_form():
    """The quadrature's ELBO is log p(x) less KL(q || posterior), which two normals have in closed form."""
    yardstick = Yardstick(0.3, 1.4)
    x = yardstick.vae.sample(4)
    q, p = yardstick.q(x), yardstick.vae.exact_posterior(x)
    kl = torch.distributions.kl_divergence(q, p).detach()
    torch.testing.assert_close(kl, torch.full((4,), yardstick.kl, dtype=torch.float64))
    elbo = yardstick.expected(lambda log_w: log_w.mean(0), 1, x)
    torch.testing.assert_close(elbo, yardstick.vae.log_px(x) - kl)


def test_the_quadrature_has_converged(monkeypatch):
    yardstick = Yardstick()
    x = yardstick.vae.sample(2)
    bounds = []
    for nodes in (8, 12):
        monkeypatch.setattr("pyro_vae.testing.yardstick.NODES", nodes)
        bounds.append(torch.stack([yardstick.expected(c.value, c.draws, x) for c in CASES.values()]).detach())
    assert float((bounds[0] - bounds[1]).abs().max()) < 1e-4


def test_every_objective_has_a_line():
    assert set(CASES) | LEFT_OUT == set(OBJECTIVES)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("pyro_vae.testing.yardstick.STEPS", 60)
    monkeypatch.setattr("pyro_vae.testing.yardstick.NODES", 8)


@pytest.mark.parametrize(
    ("num_samples", "rounds"),
    [pytest.param(100, 40, id="few"), pytest.param(512, None, id="as the command", marks=pytest.mark.slow)],
)
def test_all_figures_are_right(num_samples, rounds, quick):
    lines = list(measure(num_samples, 1, rounds))
    assert [str(line) for line in lines if not line.right] == []
    assert {line.name for line in lines} >= set(CASES) | {
        "importance_sampling",
        "prior_sampling",
        "bidirectional, upper",
    }


@pytest.mark.parametrize(("objective", "name"), [(IWAE, "iwae"), (STL, "stl")])
def test_a_wrong_bound_is_seen(objective, name, monkeypatch):
    right = objective.value
    monkeypatch.setattr(objective, "value", lambda self, log_w: right(self, log_w) + 0.1)
    yardstick = Yardstick()
    monkeypatch.setattr("pyro_vae.testing.yardstick.OBJECTIVES", [name])
    bound = next(objectives(yardstick, yardstick.vae.sample(8), 200))
    assert not bound.right
    assert "FAIL" in str(bound)


def test_a_wrong_gradient_is_seen(monkeypatch):
    yardstick = Yardstick()
    monkeypatch.setattr("pyro_vae.testing.yardstick.OBJECTIVES", ["trace"])
    x = yardstick.vae.sample(8)
    exact = yardstick.expected
    monkeypatch.setattr(yardstick, "expected", lambda value, num, x: 1.2 * exact(value, num, x))
    bound, gradient = objectives(yardstick, x, 200)
    assert not bound.right
    assert not gradient.right
    assert gradient.what == "gradient, worst of 18"


def test_a_wrong_estimate_is_seen(monkeypatch, quick):
    yardstick = Yardstick()
    exact = yardstick.vae.log_px
    monkeypatch.setattr(yardstick.vae, "log_px", lambda x: exact(x) + 0.5)
    wrong = {line.name for line in estimators(yardstick, yardstick.vae.sample(8), 500, 0) if not line.right}
    assert wrong >= {"log_weights", "importance_sampling", "annealed, from the prior", "bidirectional, upper"}


def test_bounds_may_be_on_their_side():
    assert Line("a", "b", exact=-3.0, found=-4.0, error=0.1, side=-1).right
    assert not Line("a", "b", exact=-3.0, found=-2.0, error=0.1, side=-1).right
    assert Line("a", "b", exact=-3.0, found=-2.0, error=0.1, side=1).right
    assert not Line("a", "b", exact=-3.0, found=-4.0, error=0.1).right
    assert not Line("a", "b", exact=-3.0, found=-3.0, error=math.nan).right


def test_the_command_prints_the_table(capsys, monkeypatch):
    lines = [Line("iwae", "bound, nats", -8.0, -8.01, 0.01), Line("rws", "bound, nats", -8.0, -9.0, 0.01)]
    monkeypatch.setattr("pyro_vae.testing.yardstick.measure", lambda samples, seed: lines)
    assert selftest._figures(100, 0) == 1
    out = capsys.readouterr().out
    assert "1 of 2 figures as they should" in out
    assert "FAIL rws" in out
