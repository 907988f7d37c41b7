from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats

from pyro_vae import VAE
from pyro_vae.evidence.criticism.calibration import Calibration, calibrate
from pyro_vae.evidence.criticism.ranks import LOG_JOINT, LOG_Q
from pyro_vae.evidence.simulation import Simulated
from pyro_vae.inference.program.traces import prior_guide
from tests.oracles import LinearGaussian, mixture

ORACLE = LinearGaussian()
X = ORACLE.draw(250)


def test_the_exact_posterior_passes():
    found = calibrate(ORACLE.model, ORACLE.guide(), X, seed=0)
    assert found.passed
    assert found.names == ("z[0]", "z[1]", LOG_JOINT, LOG_Q)
    assert found.ranks.shape == (1000, 4)
    assert (int(found.ranks.min()), int(found.ranks.max())) == (0, 99)
    assert "no evidence against" in found.verdict()
    for cover in found.coverage(0.8):
        assert cover.nominal == 0.8
        assert abs(cover.actual - 0.8) < 4 * cover.std_error


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["gaussian", "discrete"])
def test_an_exact_guide_fails_at_the_stated_rate(name, count):
    if name == "gaussian":
        model, guide, x = ORACLE.model, ORACLE.guide(), X[:100]
    else:
        model, guide, x = mixture().model, mixture().exact_guide, torch.zeros(100, dtype=torch.float64)
    runs = [calibrate(model, guide, x, num_simulations=100, num_draws=19, level=0.8, seed=s) for s in range(count)]
    passed = sum(run.passed for run in runs) / count
    assert passed > 0.8 - 4 * math.sqrt(0.8 * 0.2 / count)
    assert passed < 1
    for name in runs[0].names:  # and each p-value for itself is uniform
        p = sum(run.p_values[name] <= 0.5 for run in runs) / count
        assert abs(p - 0.48) < 4 * math.sqrt(0.25 / count) + 0.03  # attainable levels lie a little apart


@pytest.mark.parametrize(
    ("shift", "stretch", "faults"),
    [
        (0.0, 0.8, {"z[0]": "too narrow", "z[1]": "too narrow", LOG_JOINT: "more probable", LOG_Q: "too narrow"}),
        (0.0, 1.25, {"z[0]": "too wide", "z[1]": "too wide", LOG_JOINT: "less probable", LOG_Q: "too wide"}),
        (0.3, 1.0, {"z[0]": "too high", "z[1]": "too high"}),
        (-0.3, 1.0, {"z[0]": "too low", "z[1]": "too low"}),
    ],
)
def test_a_wrong_guide_fails_and_its_fault_is_named(shift, stretch, faults):
    found = calibrate(ORACLE.model, ORACLE.guide(shift, stretch), X, seed=0)
    assert set(faults) <= set(found.failures)
    for name, fault in faults.items():
        assert fault in found.fault(name)
    assert "is not the posterior" in found.verdict()


def test_the_prior_passes_by_its_units_and_fails_by_the_joint_density():
    found = calibrate(ORACLE.model, prior_guide(ORACLE.model), X, seed=0)
    assert found.failures == (LOG_JOINT,)
    assert found.p_values[LOG_JOINT] < 1e-9
    assert "less probable under the model than the truth" in found.verdict()


@pytest.mark.parametrize("stretch", [0.6, 1.5])
@pytest.mark.parametrize("nominal", [0.5, 0.9])
def test_coverage_is_the_closed_form(stretch, nominal):
    """With c the stretch: of an interval P(|N(0, 1)| < c t), of a set of highest density P(chi^2 < c^2 t)."""
    found = calibrate(
        ORACLE.model, ORACLE.guide(0.0, stretch), ORACLE.draw(1000), num_simulations=2000, num_draws=199, seed=0
    )
    exact = 2 * stats.norm.cdf(stretch * stats.norm.ppf((1 + nominal) / 2)) - 1
    joint = stats.chi2.cdf(stretch**2 * stats.chi2.ppf(nominal, 2), 2)
    for cover, value in zip(found.coverage(nominal), (exact, exact, joint), strict=True):
        assert cover.actual == pytest.approx(value, abs=4 * cover.std_error + 0.005)  # a quantile of 199 draws


def test_two_sites_inner_plates_and_a_guide_that_looks_back():
    """z1 ~ N(0, 1), three x ~ N(z1 + z2, 1) in an inner plate, z2 ~ N(z1, 1); the guide draws q(z2|x) q(z1|z2, x)."""

    def model(x):
        with pyro.plate("data", x.shape[-1], dim=-1):
            one = pyro.sample("one", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            two = pyro.sample("two", dist.Normal(one, 1.0))
            with pyro.plate("pixels", 3, dim=-2):
                pyro.sample("x", dist.Normal(one + two, 1.0), obs=x)

    def guide_of(back):
        def guide(x):
            total = x.sum(0)
            with pyro.plate("data", x.shape[-1], dim=-1):
                # one + two = u ~ N(0, 5) and two = 0.6 u + N(0, 0.2): by normal equations.
                u = 5 * total / 16
                two = pyro.sample("two", dist.Normal(0.6 * u, math.sqrt(0.36 * 5 / 16 + 0.2)))
                precision = 1 + 1 + 3
                pyro.sample("one", dist.Normal((two + total - 3 * two) / precision * back, precision**-0.5))

        return guide

    x = torch.zeros(3, 100, dtype=torch.float64)
    found = calibrate(model, guide_of(1.0), x, num_simulations=800, seed=1)
    assert found.names == ("one", "two", LOG_JOINT, LOG_Q)
    assert found.passed
    wrong = calibrate(model, guide_of(0.5), x, num_simulations=800, seed=1)
    assert "one" in wrong.failures
    assert "two" not in wrong.failures


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_program_that_runs_one_by_one(vectorize):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0] + z[:, 1], 1.0), obs=x)

    def guide(x):
        mean = (x / 3)[:, None].expand(-1, 2)
        covariance = torch.eye(2, dtype=x.dtype) - torch.ones(2, 2, dtype=x.dtype) / 3
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    x = torch.zeros(100, dtype=torch.float64)

    def run():
        return calibrate(model, guide, x, num_simulations=200, num_draws=19, seed=0, vectorize=vectorize)

    if vectorize:
        with pytest.warns(UserWarning, match="drawing one by one instead"):
            found = run()
    else:
        found = run()
    assert found.passed


def test_a_discrete_latent_with_a_wrong_guide_fails():
    oracle = mixture()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=0.5 * oracle.joint(x)))

    found = calibrate(oracle.model, guide, torch.zeros(500, dtype=torch.float64), seed=0)
    assert LOG_JOINT in found.failures


def test_an_autoguide_has_no_density_of_latents_it_did_not_draw():
    guide = AutoNormal(ORACLE.model, init_scale=0.3)
    found = calibrate(ORACLE.model, guide, X[:50], num_simulations=100, num_draws=19, seed=0)
    assert found.names == ("z[0]", "z[1]", LOG_JOINT)
    assert not found.passed
    assert [cover.name for cover in found.coverage()] == ["z[0]", "z[1]"]


def test_numbers_act():
    rows: list[int] = []
    vae = VAE((6,), 2, (5,)).eval()
    vae.decoder.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[:-1].numel()))
    x = torch.ones(40, 6)
    found = calibrate(vae.model, vae.guide, x, num_simulations=100, num_draws=19, chunk_rows=200, seed=0)
    assert found.ranks.shape == (100, 4)
    assert max(rows) == 200
    assert sum(r for r in rows if r in (200, 160)) == 3 * 19 * 40  # 19 draws by fives, for three batches
    again = calibrate(vae.model, vae.guide, x, num_simulations=100, num_draws=19, chunk_rows=200, seed=0)
    other = calibrate(vae.model, vae.guide, x, num_simulations=100, num_draws=19, chunk_rows=200, seed=1)
    assert torch.equal(found.ranks, again.ranks)
    assert not torch.equal(found.ranks, other.ranks)


def test_a_seed_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    calibrate(ORACLE.model, ORACLE.guide(), X[:5], num_simulations=5, num_draws=1, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    calibrate(ORACLE.model, ORACLE.guide(), X[:5], num_simulations=5, num_draws=1)
    assert not torch.equal(before, torch.get_rng_state())


def test_a_simulator_of_ones_own():
    """Of another prior than the guide knows: it fails."""

    def simulator(model, x):
        z = 3 * torch.randn(len(x), 2, dtype=torch.float64)
        noise = ORACLE.scale * torch.randn(len(x), 5, dtype=torch.float64)
        return Simulated((z @ ORACLE.weight.T + ORACLE.bias + noise,), {}, {"z": z})

    found = calibrate(ORACLE.model, ORACLE.guide(), X, seed=0, simulator=simulator)
    assert not found.passed


def test_holm_and_the_band_by_hand():
    ranks = torch.arange(100).repeat(10)[:, None].expand(-1, 3).clone()
    ranks[:, 1] = ranks[:, 1].clamp(min=20)
    found = Calibration(ranks, ("a", "b", LOG_JOINT), 99)
    assert found.failures == ("b",)
    assert found.units == ("a", "b")
    assert found.band.level >= 1 - 0.05 / 3
    assert found.pit[0, 0] == 0.005


def test_to_arviz_holds_the_transforms():
    found = calibrate(ORACLE.model, ORACLE.guide(), X, num_simulations=50, num_draws=9, seed=0)
    group = found.to_arviz()["prior_sbc"]
    assert list(group.data_vars) == list(found.names)
    assert group["z[1]"].dims == ("chain", "draw")
    assert group["z[1]"].to_numpy()[0].tolist() == found.pit[:, 1].tolist()


def test_bad_input():
    guide = ORACLE.guide()
    for name, value in {"num_simulations": 0, "num_draws": 0, "chunk_rows": 0}.items():
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            calibrate(ORACLE.model, guide, X, **{name: value})
    with pytest.raises(ValueError, match="num_draws: expected an odd number"):
        calibrate(ORACLE.model, guide, X, num_draws=100)
    with pytest.raises(ValueError, match="level: expected a probability between 0 and 1, such as 0.95, got 1"):
        calibrate(ORACLE.model, guide, X, level=1)
    found = Calibration(torch.zeros(5, 1, dtype=torch.int64), ("z",), 9)
    with pytest.raises(ValueError, match="nominal: expected a probability between 0 and 1, such as 0.9, got 90"):
        found.coverage(90)

    def broken(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((len(x), 2), math.nan, dtype=x.dtype), 1.0).to_event(1))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="expected numbers, got NaN"):
        calibrate(ORACLE.model, broken, X, num_simulations=10)


def test_no_data_and_no_guide_site_are_refused():
    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="latent site 'z'"):
        calibrate(ORACLE.model, other, X, num_simulations=10)
    with pytest.raises(ValueError, match="expected at least one datum"):
        calibrate(ORACLE.model, ORACLE.guide(), X[:0], num_simulations=10)
