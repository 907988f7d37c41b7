from __future__ import annotations

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import VAE
from pyro_vae.evidence.annealing.annealed import annealed_importance_sampling, beta_schedule
from pyro_vae.evidence.annealing.annealed_estimate import AnnealedEstimate
from pyro_vae.evidence.importance.importance import importance_sampling
from tests.oracles import LinearGaussian, all_binary, mixture, quadrature_log_px, within

ORACLE = LinearGaussian()
DOUBLE = {"dtype": torch.float64}


def unbiased(log_px: Tensor, exact: Tensor) -> bool:
    """Whether the mean over data of p-hat / p is 1: the law of annealed weights, whatever the moves."""
    ratio = (log_px - exact).exp()
    return within(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(ratio)))


# The exact value, from guides that importance sampling cannot use.


@pytest.mark.parametrize(
    ("dim", "shift", "stretch", "start"),
    [
        (10, 0.0, 0.5, "guide"),
        *(
            pytest.param(dim, shift, stretch, start, marks=pytest.mark.slow)
            for dim in (1, 2, 5, 10)
            for shift, stretch in [(0.0, 2.0), (0.0, 0.5), (1.0, 1.0)]
            for start in ("prior", "guide")
        ),
    ],
)
def test_the_exact_value_from_wrong_guides(dim, shift, stretch, start):
    oracle = LinearGaussian(data_dim=dim + 2, latent_dim=dim)
    x = oracle.draw(40)
    steps = 100 if start == "guide" else 50 * (dim + 1)
    estimate = annealed_importance_sampling(
        oracle.model, oracle.guide(shift, stretch), x, num_steps=steps, start=start, seed=2
    )
    exact = oracle.log_px(x)
    assert unbiased(estimate.log_px, exact)
    good = estimate.reliable
    assert int(good.sum()) >= 30
    # Errors are themselves estimated from 16 chains, of which 40 data are the sample.
    assert float(((estimate.log_px - exact) / estimate.std_error)[good].square().mean()) < 3
    assert float(estimate.log_px.sub(exact).abs().mean()) < 0.3
    assert within(estimate.acceptance.mean(), 0.9, 0.02)


def test_importance_sampling_fails_where_annealing_does_not():
    oracle = LinearGaussian(data_dim=12, latent_dim=10)
    x = oracle.draw(40)
    bad = importance_sampling(oracle.model, oracle.guide(0.0, 0.5), x, num_samples=16 * 100 * 5)
    assert float(bad.log_px.sub(oracle.log_px(x)).abs().mean()) > 0.3  # as many evaluations as above


def test_the_exact_guide_is_exact_and_never_flagged():
    x = ORACLE.draw(20)
    estimate = annealed_importance_sampling(ORACLE.model, ORACLE.guide(), x, num_steps=5, start="guide")
    torch.testing.assert_close(estimate.log_px, ORACLE.log_px(x), rtol=0, atol=1e-10)
    assert bool(estimate.reliable.all())
    assert float(estimate.std_error.max()) < 1e-10
    assert estimate.summary().pareto_k_bad == 0


def test_a_vae_against_quadrature_and_probabilities_sum_to_one():
    torch.manual_seed(2)
    vae = VAE((4,), 1, (6,)).double()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(2.0)
    x = all_binary(4)
    exact = quadrature_log_px(lambda z: vae.decode(z).base_dist.log_prob(x[:, None]).sum(-1).T.detach())
    estimate = annealed_importance_sampling(vae.model, vae.guide, x, num_steps=80)
    p, error = estimate.log_px.exp(), estimate.std_error * estimate.log_px.exp()
    assert within(p, exact.exp(), error)
    assert within(p.sum(), 1.0, error.square().sum().sqrt())
    # A single chain's bound, and the posterior's rate and distortion, of which it is the sum.
    torch.testing.assert_close(estimate.elbo, -estimate.rate - estimate.distortion)


def test_rate_and_distortion_are_those_of_the_posterior():
    x = ORACLE.draw(10)
    options = {"num_chains": 400, "num_steps": 20, "start": "guide", "seed": 0}
    estimate = annealed_importance_sampling(ORACLE.model, ORACLE.guide(0.2, 1.1), x, **options)
    mean, factor = ORACLE.posterior(x)
    # Of log p(x|z), quadratic in z, under the posterior; its gradient at the mean is the mean.
    quadratic = (ORACLE.weight @ factor / ORACLE.scale).mT @ (ORACLE.weight @ factor / ORACLE.scale)
    variance = quadratic.square().sum() / 2 + (mean @ factor).square().sum(-1)
    error = (variance / 400).sqrt()
    assert within(estimate.distortion, ORACLE.distortion(x, 0, 1), error)
    assert within(estimate.rate, ORACLE.rate(x, 0, 1), error)


@pytest.mark.parametrize("num", [8, 16])
def test_few_chains_have_errors_by_the_t_distribution(num):
    """Of nearly equal weights the standardized error has Student's t distribution with C - 1 degrees of freedom."""
    torch.manual_seed(0)
    log_w = 0.05 * torch.randn(num, 20_000, **DOUBLE)
    exact = math.log(math.exp(0.05**2 / 2))
    unknown = torch.ones(20_000)
    estimate = AnnealedEstimate.from_chains(log_w, torch.zeros_like(log_w), unknown, unknown, 10)
    assert bool(estimate.reliable.all())
    covered = ((estimate.log_px - exact).abs() < 1.96 * estimate.std_error).double().mean()
    from scipy.stats import t

    wanted = 1 - 2 * t.sf(1.96, num - 1)
    assert within(covered, wanted, math.sqrt(wanted * (1 - wanted) / 20_000))
    torch.testing.assert_close(estimate.jackknife_error, estimate.std_error, rtol=0.02, atol=0)
    torch.testing.assert_close(estimate.bias, -estimate.std_error.square() / 2)


def test_chains_that_disagree_get_no_error():
    log_w = torch.tensor([[0.0, 0.0], [3.0, 0.5], [-3.0, -0.5]], **DOUBLE)
    estimate = AnnealedEstimate.from_chains(log_w, torch.zeros_like(log_w), torch.ones(2), torch.ones(2), 10)
    assert estimate.reliable.tolist() == [False, True]
    assert estimate.std_error.isnan().tolist() == [True, False]
    torch.testing.assert_close(estimate.spread, torch.tensor([3.0, 0.5], **DOUBLE))
    torch.testing.assert_close(estimate.log_px, log_w.logsumexp(0) - math.log(3))
    summary = estimate.summary()
    assert (summary.pareto_k_bad, summary.mc_error) == (1, None)
    assert summary.mc_error_reliable == pytest.approx(float(estimate.std_error[1]))
    torch.manual_seed(1)
    many = AnnealedEstimate.from_chains(
        3 * torch.randn(500, 30, **DOUBLE), torch.zeros(500, 30), torch.ones(30), torch.ones(30), 10
    )
    assert torch.equal(many.reliable, many.pareto_k <= many.threshold)
    assert int((~many.reliable).sum()) > 0
    one = AnnealedEstimate.from_chains(log_w[:1], log_w[:1], torch.ones(2), torch.ones(2), 10)
    assert bool(one.std_error.isnan().all())
    assert not bool(one.reliable.any())


def test_estimates_join_and_go_to_arviz():
    x = ORACLE.draw(6)
    options = {"num_steps": 3, "num_leapfrog": 1, "num_chains": 4, "start": "guide"}
    parts = [annealed_importance_sampling(ORACLE.model, ORACLE.guide(0.3), rows, **options) for rows in (x[:4], x[4:])]
    joined = AnnealedEstimate.cat(parts)
    assert isinstance(joined, AnnealedEstimate)
    assert torch.equal(joined.acceptance, torch.cat([part.acceptance for part in parts]))
    assert (joined.num_samples, joined.num_steps) == (4, 3)
    group = joined.to_arviz()["evidence"]
    for name in ("log_px", "acceptance", "step_size", "spread"):
        assert torch.equal(torch.from_numpy(group[name].to_numpy().copy()), getattr(joined, name))
    tensors = [f.name for f in dataclasses.fields(joined) if isinstance(getattr(joined, f.name), Tensor)]
    assert all(getattr(joined, name).shape == (6,) for name in tensors)
    assert joined.draws.tolist() == [4] * 6


def test_numbers_act():
    def rows(**options):
        seen = []
        vae = VAE((6,), 2, (5,))
        vae.decoder.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[:-1].numel()))
        annealed_importance_sampling(vae.model, vae.guide, torch.ones(4, 6), **options)
        return sum(seen)

    few = {"num_chains": 8, "num_steps": 4, "num_leapfrog": 1}
    assert rows(**few | {"num_steps": 9}) - rows(**few) == 5 * 8 * 4
    # The pilot has 8 chains at most: twelve more are drawn (twice through the model), and go through three moves, a first
    # evaluation and a last.
    assert rows(**few | {"num_chains": 20}) - rows(**few) == 12 * 4 * (2 + 3 + 2)


def test_seed_fixes_the_draws_and_leaves_the_generator():
    x = ORACLE.draw(3)
    options = {"num_steps": 4, "num_leapfrog": 1, "num_chains": 2}
    torch.manual_seed(5)
    expected = torch.randn(2)
    torch.manual_seed(5)
    a, b, c = (annealed_importance_sampling(ORACLE.model, None, x, seed=s, **options).log_px for s in (1, 1, 2))
    assert torch.equal(torch.randn(2), expected)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_paths_go_from_0_to_1():
    for name in ("sigmoid", "geometric"):
        betas = torch.tensor([beta_schedule(name)(k / 20) for k in range(21)], **DOUBLE)
        assert (float(betas[0]), float(betas[-1])) == (0.0, pytest.approx(1.0))
        assert bool((betas.diff() > 0).all())
    place = torch.linspace(0, 1, 21, **DOUBLE)
    sigmoid = torch.sigmoid(4 * (2 * place - 1))
    expected = (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
    torch.testing.assert_close(torch.tensor([beta_schedule("sigmoid")(float(s)) for s in place], **DOUBLE), expected)
    assert beta_schedule("geometric")(0.3) == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_chains": 0}, "num_chains: expected at least 1, got 0"),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"num_leapfrog": -1}, "num_leapfrog: expected at least 1, got -1"),
        ({"path": "linear"}, r"path: expected one of \['sigmoid', 'geometric'\], got 'linear'"),
        ({"metric": "dense"}, r"metric: expected one of \['diagonal', 'unit'\], got 'dense'"),
        ({"start": "middle"}, "start: expected 'prior' or 'guide', got 'middle'"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        annealed_importance_sampling(ORACLE.model, ORACLE.guide(), ORACLE.draw(2), **change)


def test_programs_that_cannot_be_annealed_are_refused():
    x = ORACLE.draw(2)
    with pytest.raises(ValueError, match="start: 'guide' needs a guide"):
        annealed_importance_sampling(ORACLE.model, None, x, start="guide")
    with pytest.raises(ValueError, match="data: expected at least one datum, got a tensor of shape"):
        annealed_importance_sampling(ORACLE.model, ORACLE.guide(), x[:0])
    discrete = mixture()
    with pytest.raises(
        ValueError, match="latent site 'z': expected a continuous distribution.*got Categorical; use imp"
    ):
        annealed_importance_sampling(discrete.model, discrete.exact_guide, torch.zeros(2, **DOUBLE))
    with pytest.raises(ValueError, match="latent site 'z': missing from the guide"):
        annealed_importance_sampling(ORACLE.model, lambda x: None, x)

    def no_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="data plate: no pyro.plate encloses every observed site"):
        annealed_importance_sampling(no_plate, None, torch.zeros(()))
    vae = VAE((6,), 2, (5,), decoder=nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)))
    with pytest.raises(ValueError, match="expected the same log p.* at each call, got different values.*eval"):
        annealed_importance_sampling(vae.model, vae.guide, torch.ones(3, 6))


def test_impossible_data_have_no_probability_and_no_error():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(torch.full_like(x, 2.0), 2.0))
            pyro.sample("x", dist.Uniform(z - 1, z + 1, validate_args=False), obs=x)

    x = torch.tensor([0.5, 50.0], dtype=torch.float64)
    estimate = annealed_importance_sampling(model, None, x, num_steps=4, num_leapfrog=1)
    torch.testing.assert_close(estimate.log_px, torch.tensor([-math.log(2), -math.inf], dtype=torch.float64))
    assert estimate.reliable.tolist() == [True, False]
    assert bool(estimate.std_error[1].isnan())
