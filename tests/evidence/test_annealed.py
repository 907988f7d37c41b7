from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

from pyro_vae import VAE
from pyro_vae.evidence.annealed import AnnealedEstimate, annealed_importance_sampling, beta_of
from pyro_vae.evidence.captured_path import CapturedPath
from pyro_vae.evidence.hmc import State, evaluation, move
from pyro_vae.evidence.importance import importance_sampling
from pyro_vae.evidence.joint import Joint
from pyro_vae.evidence.pilot import KNOTS, Tuning
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
        (2, 0.0, 2.0, "prior"),
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
    steps = 100 if start == "guide" else 50 * dim
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
    estimate = annealed_importance_sampling(vae.model, vae.guide, x, num_steps=60)
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


# Latents with bounds, several sites, plates inside the data plate.


def conjugate_model(counts: Tensor, votes: Tensor) -> None:
    """Gamma-Poisson and Dirichlet-multinomial, whose log p is a closed form."""
    with pyro.plate("data", len(counts), dim=-2):
        with pyro.plate("places", counts.shape[1], dim=-1):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, **DOUBLE), torch.tensor(0.5, **DOUBLE)))
            pyro.sample("counts", dist.Poisson(rate), obs=counts)
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0], **DOUBLE)))
        pyro.sample("votes", dist.Multinomial(total_count=6, probs=share), obs=votes)


def conjugate_log_px(counts: Tensor, votes: Tensor) -> Tensor:
    poisson = dist.GammaPoisson(torch.tensor(2.0, **DOUBLE), torch.tensor(0.5, **DOUBLE)).log_prob(counts).sum(-1)
    dirichlet = dist.DirichletMultinomial(torch.tensor([2.0, 1.0, 3.0], **DOUBLE), total_count=6, is_sparse=False)
    return poisson + dirichlet.log_prob(votes[:, 0])


COUNTS = torch.tensor([[3.0, 0.0], [7.0, 2.0], [1.0, 9.0], [4.0, 4.0]], **DOUBLE)
VOTES = torch.tensor([[6.0, 0, 0], [2, 2, 2], [0, 1, 5], [1, 4, 1]], **DOUBLE)[:, None]


def test_positive_and_simplex_latents_in_nested_plates():
    exact = conjugate_log_px(COUNTS, VOTES)
    estimate = annealed_importance_sampling(conjugate_model, None, COUNTS, VOTES, num_chains=100, num_steps=60, seed=0)
    assert within(estimate.log_px, exact, estimate.std_error)
    assert float(estimate.std_error.max()) < 0.2


def test_vectors_hold_every_site_and_come_back():
    joint = Joint(conjugate_model, None, (COUNTS, VOTES), {})
    assert joint.dim == 2 + 2  # two rates, and a simplex of three
    u = joint.draw(3)
    assert u.shape == (3, 4, 4)
    rate, share = u[..., :2].exp(), u[..., 2:]
    share = constraints_to_simplex(share)
    values = {"rate": rate, "share": share[:, :, None]}
    torch.testing.assert_close(joint.pack(values), u)
    torch.testing.assert_close(joint.pack({k: v[0] for k, v in values.items()}), u[:1])
    base, slope = joint.terms(u)
    prior = dist.Gamma(torch.tensor(2.0, **DOUBLE), 0.5).log_prob(rate).sum(-1) + u[..., :2].sum(-1)
    concentration = torch.tensor([2.0, 1.0, 3.0], **DOUBLE)
    transform = torch.distributions.biject_to(constraints.simplex)
    jacobian = transform.log_abs_det_jacobian(u[..., 2:], share)
    torch.testing.assert_close(base, prior + dist.Dirichlet(concentration).log_prob(share) + jacobian)
    likelihood = dist.Poisson(rate).log_prob(COUNTS).sum(-1)
    torch.testing.assert_close(slope, likelihood + dist.Multinomial(6, probs=share).log_prob(VOTES[:, 0]))


def constraints_to_simplex(u: Tensor) -> Tensor:
    return torch.distributions.biject_to(constraints.simplex)(u)


def test_a_support_that_depends_on_another_latent():
    """top ~ Gamma, low ~ Uniform(0, top): the density of u = T^-1(z) integrates to that of z."""

    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Gamma(torch.tensor(3.0, **DOUBLE), 1.0))
            low = pyro.sample("low", dist.Uniform(torch.zeros_like(top), top))
            pyro.sample("x", dist.Normal(low, 1.0), obs=x)

    x = torch.tensor([0.3, 2.0], **DOUBLE)
    joint = Joint(model, None, (x,), {})
    u = joint.draw(5)
    top = u[..., 0].exp()
    share = torch.sigmoid(u[..., 1])
    low = top * share
    jacobian = top.log() + (top * share * (1 - share)).log()
    expected = dist.Gamma(torch.tensor(3.0, **DOUBLE), 1.0).log_prob(top) - top.log() + jacobian
    base, slope = joint.terms(u)
    torch.testing.assert_close(base, expected)
    torch.testing.assert_close(slope, dist.Normal(low, 1.0).log_prob(x))


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_path_is_its_formula_and_its_gradient_right(start):
    x = ORACLE.draw(4)
    guide = ORACLE.guide(0.5, 1.5)
    joint = Joint(ORACLE.model, guide, (x,), {}, start)
    u = joint.draw(3)
    mean, factor = ORACLE.posterior(x)
    q = dist.MultivariateNormal(mean + 0.5 * factor.sum(-1), scale_tril=1.5 * factor).log_prob(u)
    prior = dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1).log_prob(u)
    likelihood = dist.Normal(u @ ORACLE.weight.T + ORACLE.bias, ORACLE.scale).to_event(1).log_prob(x)
    base, slope = joint.terms(u)
    torch.testing.assert_close(base, prior if start == "prior" else q)
    torch.testing.assert_close(slope, likelihood if start == "prior" else likelihood + prior - q)
    state = evaluation(joint.terms)(u)
    for found, part in [(state.base_grad, 0), (state.slope_grad, 1)]:
        step = torch.zeros(2, **DOUBLE)
        step[1] = 1e-5
        slopes = (joint.terms(u + step)[part] - joint.terms(u - step)[part]) / 2e-5
        torch.testing.assert_close(found[..., 1], slopes, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state.log_density(0.3), base + 0.3 * slope)
    torch.testing.assert_close(state.gradient(0.3), state.base_grad + 0.3 * state.slope_grad)


def test_a_guide_with_several_sites():
    """q(b | a) depends on the draw of a: the guide is run at each evaluation."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 3 + 1, 0.9))
            pyro.sample("b", dist.Normal((a + x) / 2, 1.2))

    x = torch.tensor([-2.0, 0.0, 1.0], **DOUBLE)
    estimate = annealed_importance_sampling(model, guide, x, num_chains=100, num_steps=40, start="guide", seed=1)
    exact = dist.Normal(torch.zeros_like(x), math.sqrt(3)).log_prob(x)
    assert within(estimate.log_px, exact, estimate.std_error)


# The moves.


def gaussian(scale: Tensor) -> Callable[[Tensor], State]:
    """a of N(0, I), and b such that a + b is N(0, diag scale^2)."""

    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        base = -u.square().sum(-1) / 2
        return base, -(u / scale).square().sum(-1) / 2 - base

    return evaluation(terms)


@pytest.mark.parametrize("size", [0.5, 2.0, 2.6])
def test_a_move_leaves_its_density_as_it_is(size):
    """Draws of N(0, diag(1, 0.25)) stay such draws, whether moves are taken or refused."""
    scale = torch.tensor([1.0, 0.5], **DOUBLE)
    evaluate, num = gaussian(scale), 40_000
    state = evaluate(torch.randn(num, 1, 2, **DOUBLE) * scale)
    taken = []
    for _ in range(3):
        state, probability = move(evaluate, state, 1.0, torch.tensor([size]), scale, 3)
        taken.append(float(probability.mean()))
    u = state.u[:, 0] / scale
    assert within(u.mean(0), 0.0, 1 / math.sqrt(num))
    assert within(u.square().mean(0), 1.0, math.sqrt(2 / num))
    assert (taken[0] > 0.95) == (size == 0.5)
    assert taken[0] > 0.2


def test_each_step_evaluates_one_gradient_and_keeps_what_is_known():
    calls = []
    scale = torch.ones(2, **DOUBLE)
    evaluate = gaussian(scale)

    def counted(u: Tensor) -> State:
        calls.append(u.shape)
        return evaluate(u)

    start = evaluate(torch.randn(50, 3, 2, **DOUBLE))
    state, _ = move(counted, start, 0.5, torch.full((3,), 2.2), scale, 7)
    assert calls == [(50, 3, 2)] * 7
    again = evaluate(state.u)
    for ours, theirs in zip(state, again, strict=True):
        torch.testing.assert_close(ours, theirs)
    moved = (state.u != start.u).any(-1)
    assert 0 < int(moved.sum()) < 150


def test_a_chain_that_leaves_the_numbers_stays_where_it_was():
    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        return u.sum(-1) * 0, -u.pow(4).sum(-1)

    state = evaluation(terms)(torch.ones(4, 2, 1, **DOUBLE))
    after, probability = move(evaluation(terms), state, 1.0, torch.tensor([1.0, 1e9]), torch.ones(1, **DOUBLE), 20)
    assert float(probability[:, 1].max()) == 0.0
    assert torch.equal(after.u[:, 1], state.u[:, 1])
    assert bool(after.u.isfinite().all())


def test_paths_go_from_0_to_1():
    for name in ("sigmoid", "geometric"):
        betas = torch.tensor([beta_of(name)(k / 20) for k in range(21)], **DOUBLE)
        assert (float(betas[0]), float(betas[-1])) == (0.0, pytest.approx(1.0))
        assert bool((betas.diff() > 0).all())
    place = torch.linspace(0, 1, 21, **DOUBLE)
    sigmoid = torch.sigmoid(4 * (2 * place - 1))
    expected = (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
    torch.testing.assert_close(torch.tensor([beta_of("sigmoid")(float(s)) for s in place], **DOUBLE), expected)
    assert beta_of("geometric")(0.3) == 0.3


def test_tuning_lies_on_lines_between_knots():
    logs = torch.arange(KNOTS, **DOUBLE)[:, None] * torch.tensor([1.0, 2.0], **DOUBLE)
    tuning = Tuning(logs, torch.tensor([1.0, 4.0]), torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(tuning.step_size(0.5).log(), logs[-1] / 2)
    torch.testing.assert_close(tuning.step_size(1.0).log(), logs[-1])
    torch.testing.assert_close(tuning.scale(0.0), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(tuning.scale(1.0), torch.tensor([0.5, 2.0]))


# What is reported.


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


# Programs of other kinds.


def test_a_program_that_indexes_from_the_left_goes_chain_by_chain():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)

    x = torch.tensor([0.5, 2.0, -1.0], **DOUBLE)
    with pytest.warns(UserWarning, match="going chain by chain instead"):
        joint = Joint(model, None, (x,), {})
    u = joint.draw(4)
    base, slope = joint.terms(u)
    torch.testing.assert_close(slope, dist.Normal(u[..., 0], 1.0).log_prob(x))
    torch.testing.assert_close(base, dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1).log_prob(u))
    torch.testing.assert_close(joint.pack({"z": u}), u)


def test_masks_and_plate_scales_do_not_enter():
    keep = torch.tensor([True, True, False, True])

    def model(x, masked):
        with pyro.plate("data", 8, subsample_size=4), pyro.poutine.mask(mask=keep if masked else torch.tensor(True)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(4, **DOUBLE), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([0.5, 2.0, 1.0, 3.0], **DOUBLE)
    whole, masked = (Joint(model, None, (x, flag), {}) for flag in (False, True))
    u = whole.draw(3)
    for ours, theirs in zip(masked.terms(u), whole.terms(u), strict=True):
        torch.testing.assert_close(ours, torch.where(keep, theirs, 0.0))
    torch.testing.assert_close(whole.terms(u).slope, dist.Normal(u[..., 0].exp(), 1.0).log_prob(x))


def test_autoguides_give_a_metric_and_no_start():
    x = ORACLE.draw(4)
    guide = AutoNormal(ORACLE.model, init_scale=0.3)
    options = {"num_steps": 40, "num_chains": 64}
    estimate = annealed_importance_sampling(ORACLE.model, guide, x, **options)
    assert within(estimate.log_px, ORACLE.log_px(x), estimate.std_error.nan_to_num(nan=1.0))
    with pytest.raises(ValueError, match="expected a density over the model's latents.*pass start='prior'"):
        annealed_importance_sampling(ORACLE.model, guide, x, start="guide", **options)
    point = annealed_importance_sampling(ORACLE.model, AutoDelta(ORACLE.model), x, num_steps=2, num_leapfrog=1)
    assert bool(point.log_px.isfinite().all())


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
    with pytest.raises(ValueError, match="start: expected 'prior' where there is no guide"):
        annealed_importance_sampling(ORACLE.model, None, x, start="guide")
    with pytest.raises(ValueError, match="data: expected at least one datum, got none"):
        annealed_importance_sampling(ORACLE.model, ORACLE.guide(), x[:0])
    discrete = mixture()
    with pytest.raises(
        ValueError, match="latent site 'z': expected a continuous distribution.*got Categorical; use imp"
    ):
        annealed_importance_sampling(discrete.model, discrete.exact_guide, torch.zeros(2, **DOUBLE))
    with pytest.raises(ValueError, match="latent site 'z': expected in model and guide, got in the model only"):
        annealed_importance_sampling(ORACLE.model, lambda x: None, x)

    def no_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="data plate: expected one pyro.plate around every observed site"):
        annealed_importance_sampling(no_plate, None, torch.zeros(()))
    vae = VAE((6,), 2, (5,), decoder=nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)))
    with pytest.raises(ValueError, match="expected the same log p.* at each call, got another.*eval"):
        annealed_importance_sampling(vae.model, vae.guide, torch.ones(3, 6))


# Compiled.


@pytest.mark.slow
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_compiled_gradients_are_the_eager_ones_in_every_batch(start):
    vae, captured = VAE((6,), 2, (5,)), CapturedPath()
    for k in range(3):
        x = (torch.rand(4, 6) > 0.2 * k + 0.2).float()
        joint = Joint(vae.model, vae.guide, (x,), {}, start)
        u = joint.draw(3)
        compiled, eager = captured(joint, u), evaluation(joint.terms)
        for shifted in (u, u + 1):
            for ours, theirs in zip(compiled(shifted), eager(shifted), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (captured.captures, captured.reason) == (1, None)


@pytest.mark.slow
def test_a_model_that_changed_is_captured_anew():
    x, captured = torch.ones(4, 6), CapturedPath()
    for vae in (VAE((6,), 2, (5,)), VAE((6,), 2, (5,))):
        joint = Joint(vae.model, vae.guide, (x,), {})
        u = joint.draw(3)
        ours, theirs = captured(joint, u)(u), evaluation(joint.terms)(u)
        torch.testing.assert_close(ours.slope, theirs.slope, rtol=1e-4, atol=1e-4)
    assert captured.captures == 2


def test_what_cannot_be_captured_goes_on_eagerly():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            far = bool((z.detach() > 100).any())  # a branch on a value
            pyro.sample("x", dist.Normal(z + far, 1.0), obs=x)

    x = torch.zeros(3, **DOUBLE)
    with pytest.warns(UserWarning, match="gradients cannot be compiled and are made eagerly"):
        estimate = annealed_importance_sampling(model, None, x, num_steps=2, num_leapfrog=1, compile=True)
    assert bool(estimate.log_px.isfinite().all())
