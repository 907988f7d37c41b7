from __future__ import annotations

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_vae import VAE, log_weights
from pyro_vae.evidence import Estimate, importance_sampling, prior_sampling
from tests.oracles import LinearGaussian, all_binary, mixture, quadrature_log_px, within

ORACLE = LinearGaussian()


def test_the_exact_guide_is_exact_and_never_flagged():
    x = ORACLE.draw(20)
    estimate = importance_sampling(ORACLE.model, ORACLE.guide(), x, num_samples=200)
    torch.testing.assert_close(estimate.log_px, ORACLE.log_px(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(estimate.ess, torch.full((20,), 200.0, dtype=torch.float64))
    assert bool(estimate.reliable.all())
    assert float(estimate.std_error.max()) < 1e-12
    assert estimate.summary().pareto_k_bad == 0
    torch.testing.assert_close(estimate.largest_share, torch.full((20,), 1 / 200, dtype=torch.float64))


def test_the_exact_guide_in_float32_is_never_flagged():
    x = ORACLE.draw(30)
    log_w = (ORACLE.log_px(x) + 1e-6 * torch.randn(100, 30, dtype=torch.float64)).float()
    estimate = Estimate.from_weights(log_w, torch.zeros_like(log_w))
    assert estimate.summary().pareto_k_bad == 0
    assert estimate.summary().mc_error < 1e-5


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.3), (0.3, 1.2), (0.0, 0.9)])
def test_standardized_errors_have_mean_square_one(dim, shift, stretch):
    oracle = LinearGaussian(data_dim=dim + 2, latent_dim=dim)
    num = 2000
    relative = oracle.relative_variance(shift, stretch) / num
    assert relative < 0.01
    x = oracle.draw(25).repeat(20, 1)
    guide = oracle.guide(shift, stretch)
    estimate = importance_sampling(oracle.model, guide, x, num_samples=num, seed=0, chunk_rows=50_000)
    standardized = (estimate.log_px - oracle.log_px(x)) / estimate.std_error
    squares = standardized[~standardized.isnan()].square()
    assert len(squares) >= 0.9 * 500
    assert within(squares.mean(), 1.0, squares.std() / math.sqrt(len(squares)))


@pytest.mark.parametrize(("shift", "stretch"), [pytest.param(0.0, 1.5, marks=pytest.mark.slow), (0.8, 1.1)])
def test_the_bias_is_the_closed_form(shift, stretch):
    """The mean error over many data is -Var(w) / (2 K p^2), and that is what an estimate reports."""
    num, repeats = 100, 40_000
    x = ORACLE.draw(1).expand(repeats, -1)
    exact = -ORACLE.relative_variance(shift, stretch) / (2 * num)
    log_w = log_weights(ORACLE.model, ORACLE.guide(shift, stretch), x, num_samples=num)
    error = log_w.logsumexp(0) - math.log(num) - ORACLE.log_px(x)
    standard_error = float(error.std()) / math.sqrt(repeats)
    # The next order of the bias is of the size of its square.
    assert abs(float(error.mean()) - exact) < 4 * standard_error + 4 * exact**2
    assert exact < -4 * standard_error
    estimate = Estimate.from_weights(log_w[:, :400], torch.zeros(num, 400, dtype=torch.float64))
    reported = estimate.bias[estimate.reliable]
    assert len(reported) > 300
    assert float(reported.mean()) == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 0.6), (2.5, 1.0), (0.0, 0.5)])
def test_bad_guides_are_flagged_and_get_no_error(shift, stretch):
    oracle = LinearGaussian(data_dim=7, latent_dim=5)
    x = oracle.draw(50)
    estimate = importance_sampling(oracle.model, oracle.guide(shift, stretch), x, num_samples=1000)
    assert float(estimate.pareto_k.median()) > estimate.threshold
    flagged = ~estimate.reliable
    assert bool(estimate.std_error[flagged].isnan().all())
    assert bool(estimate.bias[flagged].isnan().all())
    assert not bool(estimate.std_error[~flagged].isnan().any())
    summary = estimate.summary()
    assert summary.pareto_k_bad == int(flagged.sum())
    assert summary.mc_error is None
    assert summary.bias is None
    assert summary.jackknife_error is None
    assert summary.std_error > 0
    assert summary.verdict().startswith(f"Pareto k is above 0.67 for {int(flagged.sum())} of 50 data: ")


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 2.0), (1.0, 1.0), (0.0, 0.5), (3.0, 0.7)])
@pytest.mark.parametrize("num", [2, 50])
def test_markov_bound_holds_at_any_tail(shift, stretch, num):
    """The mean log p(x) is below its 95 % lower bound in at most 5 % of 200 repetitions, within binomial error."""
    x = ORACLE.draw(10)
    exact = float(ORACLE.log_px(x).mean())
    guide, repeated = ORACLE.guide(shift, stretch), x.repeat(200, 1)
    estimate = importance_sampling(ORACLE.model, guide, repeated, num_samples=num, seed=0, chunk_rows=50_000)
    bounds = [estimate.take(torch.arange(10 * i, 10 * i + 10)).summary().lower_bound for i in range(200)]
    misses = sum(bound > exact for bound in bounds)
    assert misses <= 10 + 4 * math.sqrt(200 * 0.05 * 0.95)


def test_markov_bound_is_the_formula():
    estimate = importance_sampling(ORACLE.model, ORACLE.guide(0.1), ORACLE.draw(8), num_samples=20)
    summary = estimate.summary()
    assert summary.lower_bound == pytest.approx(summary.log_px - math.log(20) / 8)


def test_elbo_rate_and_distortion_are_closed_forms():
    x = ORACLE.draw(6)
    estimate = importance_sampling(ORACLE.model, ORACLE.guide(0.3, 1.1), x, num_samples=5000)
    assert within(estimate.elbo, ORACLE.log_px(x) - ORACLE.kl(0.3, 1.1), estimate.elbo_std_error)
    torch.testing.assert_close(estimate.elbo, -estimate.rate - estimate.distortion)
    spread = 4 * float(estimate.elbo_std_error.max()) * 4
    torch.testing.assert_close(estimate.rate, ORACLE.rate(x, 0.3, 1.1), rtol=0, atol=spread)


def test_summary_means_and_errors():
    x = ORACLE.draw(40)
    estimate = importance_sampling(ORACLE.model, ORACLE.guide(0.2, 1.1), x, num_samples=2000)
    summary = estimate.summary()
    assert summary.log_px == pytest.approx(float(estimate.log_px.mean()))
    assert summary.std_error == pytest.approx(float(estimate.log_px.std()) / math.sqrt(40))
    assert summary.mc_error == pytest.approx(float(estimate.std_error.square().mean().sqrt()) / math.sqrt(40))
    assert summary.mc_error_reliable == pytest.approx(summary.mc_error)
    assert summary.bias == pytest.approx(-float(estimate.std_error.square().mean()) / 2)
    assert summary.jackknife_error == pytest.approx(
        float(estimate.jackknife_error.square().mean().sqrt()) / math.sqrt(40)
    )
    assert summary.jackknife_error == pytest.approx(summary.mc_error, rel=0.1)
    assert summary.smoothed_change == pytest.approx(float((estimate.smoothed - estimate.log_px).mean()))
    assert 0 < abs(summary.smoothed_change) < summary.mc_error
    assert (summary.draws, summary.pilot_draws) == (40 * 2000, 0)
    assert summary.verdict() == "Pareto k is at most 0.70 for all 40 data: the Monte Carlo error can be trusted."
    assert summary.gap == pytest.approx(summary.log_px - summary.elbo)
    assert within(summary.log_px, float(ORACLE.log_px(x).mean()), summary.mc_error)
    one = importance_sampling(ORACLE.model, ORACLE.guide(0.2), x[:1], num_samples=1).summary()
    assert (one.std_error, one.mc_error, one.elbo_mc_error, one.pareto_k_threshold) == (None, None, None, None)
    assert one.verdict() == "one draw for each datum gives no error estimate: take at least 2 draws."


@pytest.mark.parametrize("latent", ["vae", "normal"])
def test_vae_against_quadrature_and_probabilities_sum_to_one(latent):
    """All 2^4 images of a Bernoulli VAE with one latent unit, against Gauss-Hermite quadrature."""
    torch.manual_seed(2)
    vae = VAE((4,), 1, (6,)).double()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(2.0)
    x = all_binary(4)
    exact = quadrature_log_px(lambda z: vae.decode(z).base_dist.log_prob(x[:, None]).sum(-1).T.detach())
    assert float(exact.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    if latent == "vae":
        estimate = importance_sampling(vae.model, vae.guide, x, num_samples=20_000)
    else:
        estimate = prior_sampling(vae.model, x, num_samples=20_000)
    p = estimate.log_px.exp()
    error = p * (1 / estimate.ess - 1 / 20_000).clamp(min=1e-12).sqrt()
    assert within(p, exact.exp(), error)
    assert within(p.sum(), 1.0, error.square().sum().sqrt())


def test_discrete_latents_are_sampled():
    oracle, x = mixture(), torch.linspace(-3, 3, 5, dtype=torch.float64)
    exact = importance_sampling(oracle.model, oracle.exact_guide, x, num_samples=50)
    torch.testing.assert_close(exact.log_px, oracle.log_px(x))
    naive = prior_sampling(oracle.model, x, num_samples=20_000)
    error = (1 / naive.ess - 1 / 20_000).sqrt()
    assert within(naive.log_px, oracle.log_px(x), error)
    assert float(naive.rate.abs().max()) == 0.0


@pytest.mark.parametrize("num_samples", [1, 10, 101])
@pytest.mark.parametrize("chunk_rows", [1, 12, 1000])
def test_num_samples_and_chunks_act(num_samples, chunk_rows):
    rows = []
    vae = VAE((6,), 2, (5,))
    vae.decoder.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[:-1].numel()))
    estimate = importance_sampling(
        vae.model, vae.guide, torch.ones(4, 6), num_samples=num_samples, chunk_rows=chunk_rows
    )
    assert sum(rows) == 4 * num_samples + 8  # the first trace, and one draw alone to compare
    assert max(rows) <= max(4, chunk_rows)
    assert estimate.num_samples == num_samples
    assert estimate.log_px.dtype == torch.float64


def test_chunks_change_an_estimate_only_as_other_draws_do():
    x = ORACLE.draw(5)
    estimates = [
        importance_sampling(ORACLE.model, ORACLE.guide(0.3, 1.2), x, num_samples=500, chunk_rows=rows)
        for rows in (5, 77, 9999)
    ]
    for estimate in estimates:
        assert within(estimate.log_px, ORACLE.log_px(x), estimate.std_error)


def test_cat_joins_batches():
    x = ORACLE.draw(7)
    parts = [importance_sampling(ORACLE.model, ORACLE.guide(), x[i : i + 3], num_samples=30) for i in (0, 3, 6)]
    joined = Estimate.cat(parts)
    torch.testing.assert_close(joined.log_px, ORACLE.log_px(x))
    tensors = [f.name for f in dataclasses.fields(joined) if f.name not in ("num_samples", "num_pilot")]
    assert all(len(getattr(joined, name)) == 7 for name in tensors)
    other = importance_sampling(ORACLE.model, ORACLE.guide(), x, num_samples=31)
    mixed = Estimate.cat([parts[0], other])
    assert (mixed.num_samples, mixed.draws.tolist()) == (31, [30] * 3 + [31] * 7)
    with pytest.raises(ValueError, match="cat: expected at least one estimate, got none"):
        Estimate.cat([])


def test_no_gradients_and_no_effect_on_the_model():
    vae = VAE((6,), 2, (5,))
    estimate = importance_sampling(vae.model, vae.guide, torch.ones(4, 6), num_samples=5)
    assert not estimate.log_px.requires_grad
    assert all(p.grad is None for p in vae.parameters())


def test_a_delta_guide_is_no_perfect_proposal():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 2, dtype=x.dtype), event_dim=1))

    with pytest.raises(ValueError, match="guide site 'z': expected a distribution with a density, got a Delta"):
        importance_sampling(ORACLE.model, guide, ORACLE.draw(3), num_samples=30)


def test_an_autoguide_with_local_sites():
    x = ORACLE.draw(6)
    guide = AutoNormal(ORACLE.model, init_scale=0.3)
    estimate = importance_sampling(ORACLE.model, guide, x, num_samples=20_000)
    good = estimate.reliable
    assert int(good.sum()) > 0
    assert within(estimate.log_px[good], ORACLE.log_px(x)[good], estimate.std_error[good])


def test_bad_numbers_and_nan_weights_are_refused():
    x = ORACLE.draw(2)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        importance_sampling(ORACLE.model, ORACLE.guide(), x, num_samples=0)
    with pytest.raises(ValueError, match="chunk_rows: expected at least 1, got 0"):
        importance_sampling(ORACLE.model, ORACLE.guide(), x, chunk_rows=0)
    broken = torch.tensor([[0.0, math.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match="got NaN for 1 data"):
        Estimate.from_weights(broken, torch.zeros(2, 2))


def test_impossible_data_have_no_probability_and_no_error():
    log_w = torch.full((200, 2), -math.inf, dtype=torch.float64)
    log_w[:, 1] = torch.randn(200, dtype=torch.float64)
    estimate = Estimate.from_weights(log_w, torch.zeros_like(log_w))
    assert float(estimate.log_px[0]) == -math.inf
    assert bool(estimate.std_error[0].isnan())
    assert estimate.reliable.tolist() == [False, True]


def test_to_arviz_holds_the_pointwise_values(tmp_path):
    x = ORACLE.draw(6)
    estimate = importance_sampling(ORACLE.model, ORACLE.guide(0.2), x, num_samples=100)
    container = estimate.to_arviz()
    group = container["evidence"]
    assert group["log_px"].dims == ("datum",)
    torch.testing.assert_close(torch.from_numpy(group["log_px"].to_numpy().copy()), estimate.log_px)
    names = {f.name for f in dataclasses.fields(estimate)} - {"num_samples", "num_pilot"}
    assert set(group.data_vars) == names | {"threshold"}
    assert (group.attrs["num_samples"], group.attrs["num_pilot"]) == (100, 0)
    assert group["threshold"].to_numpy() == pytest.approx(0.5)
