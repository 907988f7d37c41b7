"""Per-datum refinement, against the exact divergence from the posterior of what it ends at."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import kl_divergence

from pyro_vae import VAE
from pyro_vae.evidence import importance_sampling
from pyro_vae.evidence.refinement.refined import refine
from pyro_vae.evidence.refinement.refined_importance import refined_importance_sampling
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from tests.inference.weights.test_enumerated_draws import M2
from tests.oracles import LinearGaussian, within

ORACLE = LinearGaussian(data_dim=5, latent_dim=3)


def diagonal(shift, stretch):
    """A diagonal guide: its best is the mean-field optimum, 1 / sd^2 = diagonal of the posterior precision."""

    def guide(x):
        mean, factor = ORACLE.posterior(x)
        scale = torch.linalg.inv(factor @ factor.T).diagonal().rsqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + shift * scale, stretch * scale).to_event(1))

    return guide


def divergence(guide, x):
    """KL(q || posterior) of each datum, exact."""
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    if not isinstance(q, dist.MultivariateNormal):
        q = dist.MultivariateNormal(q.mean, scale_tril=q.stddev.diag_embed())
    mean, factor = ORACLE.posterior(x)
    return kl_divergence(q, dist.MultivariateNormal(mean, scale_tril=factor.expand(len(x), -1, -1)))


BEST_DIAGONAL = float(divergence(diagonal(0.0, 1.0), ORACLE.draw(1)))


@pytest.mark.parametrize(("shift", "stretch"), [(1.0, 1.0), (0.0, 0.5), (0.0, 2.0), (2.0, 0.6)])
@pytest.mark.parametrize(("family", "best"), [(ORACLE.guide, 0.0), (diagonal, BEST_DIAGONAL)])
def test_refinement_ends_at_the_best_of_the_family(family, best, shift, stretch):
    x = ORACLE.draw(8)
    start = divergence(family(shift, stretch), x)
    refined = refine(ORACLE.model, family(shift, stretch), x)
    end = divergence(refined, x)
    assert bool(refined.kept.all())
    assert float(end.min()) > best - 1e-9
    # Of the distance to the optimum at most a fiftieth is left.
    assert float((end - best).max()) < 0.02 * float((start - best).min())
    # The reported ELBOs are unbiased: their draws chose nothing.
    error = refined.elbo_std_error + 1e-9
    assert within(refined.elbo, ORACLE.log_px(x) - end, error)
    assert within(refined.improvement, start - end, refined.improvement_std_error)
    torch.testing.assert_close(refined.elbo - refined.elbo_start, refined.improvement)


@pytest.mark.parametrize(("shift", "stretch"), [pytest.param(0.0, 1.0, marks=pytest.mark.slow), (1.0, 0.6)])
def test_a_covariance_reaches_the_posterior_from_a_diagonal_guide(shift, stretch):
    x = ORACLE.draw(8)
    start = divergence(diagonal(shift, stretch), x)
    refined = refine(ORACLE.model, diagonal(shift, stretch), x, full_covariance=True)
    assert bool(refined.kept.all())
    assert float(divergence(refined, x).max()) < 0.02 * float(start.min())
    assert within(refined.elbo, ORACLE.log_px(x) - divergence(refined, x), refined.elbo_std_error + 1e-9)
    estimate = refined_importance_sampling(ORACLE.model, diagonal(shift, stretch), x, num_samples=500)
    assert float(estimate.ess.min()) > 480
    plain = refined_importance_sampling(
        ORACLE.model, diagonal(shift, stretch), x, num_samples=500, full_covariance=False
    )
    assert float(plain.ess.max()) < 450


def test_the_exact_guide_is_left_alone():
    x = ORACLE.draw(6)
    refined = refine(ORACLE.model, ORACLE.guide(), x, steps=30)
    assert not bool(refined.kept.any())
    assert all(bool((part == 0).all()) for parts in refined.offsets.values() for part in parts)
    torch.testing.assert_close(refined.elbo, ORACLE.log_px(x))
    assert float(divergence(refined, x).abs().max()) < 1e-10


def test_a_good_datum_beside_bad_ones_is_never_made_worse():
    """Half of the data start at the best diagonal guide: those stay there within what a step size of 0 leaves."""
    x = ORACLE.draw(40)
    wrong = torch.arange(40)[:, None] % 2

    def guide(x):
        mean, factor = ORACLE.posterior(x)
        scale = torch.linalg.inv(factor @ factor.T).diagonal().rsqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + wrong * scale, (1 - 0.4 * wrong) * scale).to_event(1))

    refined = refine(ORACLE.model, guide, x, steps=20, lr=0.5, num_particles=1)  # too rough to end well
    good = wrong[:, 0] == 0
    end = divergence(refined, x)
    assert int(refined.kept[good].sum()) <= 2
    assert int(refined.kept[~good].sum()) > 10
    torch.testing.assert_close(end[~refined.kept], divergence(guide, x)[~refined.kept])


def test_selection_brings_no_bias():
    """With a refinement by chance alone, the told improvement is that of the distributions kept."""
    x = ORACLE.draw(1).expand(400, -1)
    start = diagonal(0.6, 1.0)
    refined = refine(ORACLE.model, start, x, steps=4, lr=0.1, num_particles=1, num_draws=5)
    exact = divergence(start, x) - divergence(refined, x)
    assert 20 < int(refined.kept.sum()) < 380
    error = (refined.improvement - exact).std() / math.sqrt(400)
    assert within((refined.improvement - exact).mean(), 0.0, error)


def test_importance_sampling_recovers_from_a_narrow_guide():
    """At 0.4 of the posterior's width the weights have no variance (k = 0.84); refined, the estimate is good."""
    x = ORACLE.draw(10)
    before = importance_sampling(ORACLE.model, ORACLE.guide(1.5, 0.4), x, num_samples=1000)
    after = refined_importance_sampling(ORACLE.model, ORACLE.guide(1.5, 0.4), x, num_samples=1000, chunk_rows=500)
    assert int(before.reliable.sum()) < 5
    good = after.reliable
    assert int(good.sum()) >= 8
    assert within(after.log_px[good], ORACLE.log_px(x)[good], after.std_error[good])
    assert float(after.ess.min()) > 3 * float(before.ess.median())
    assert after.num_samples == 1000


@pytest.mark.parametrize("noise", [0.15, 0.6])
def test_a_refinement_that_leaves_out_a_mode_is_given_up(noise):
    """x ~ N(z^2, noise^2): the ELBO is largest at one of two modes, and with it log p(x) is too low by up to log 2, unseen."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z.square(), noise), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.3))

    x = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    axis = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]
    log_joint = dist.Normal(0.0, 1.0).log_prob(axis) + dist.Normal(axis.square(), noise).log_prob(x)
    exact = log_joint.logsumexp(0) + math.log(12 / 20_000)
    assert float((refine(model, guide, x, seed=0).elbo - exact).max()) < -0.1
    found = refined_importance_sampling(model, guide, x, seed=0)
    assert within(found.log_px, exact, found.std_error)


def test_sites_that_depend_on_earlier_draws_are_refined_too():
    """z1 -> z2 -> x, all Gaussian: q(z2|z1, x) is moved by one offset for all z1, which reaches the exact posterior."""
    zero = torch.zeros((), dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(zero, 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.2 * x, 1.2))
            # Exact is N(0.2 z1 + 0.8 x, 0.2).
            pyro.sample("z2", dist.Normal(0.2 * z1 + 0.5 * x + 0.3, 0.7))

    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    refined = refine(model, guide, x)
    exact = dist.Normal(zero, math.sqrt(2.25)).log_prob(x)
    log_w = EnumeratedDraws(model, refined, (x,), {})(200).log_w
    assert float((log_w - exact).std(0).max()) < 0.03
    assert float((refined.elbo - exact).abs().max()) < 0.01
    assert float((refined.elbo_start - exact).max()) < -0.1


def test_enumerated_sites_are_refined_too():
    """q(y|x) moves to the exact p(y|x), where the ELBO is log p(x)."""
    m2 = M2()
    x = m2.draw(6)
    refined = refine(m2.model, m2.guide, x, lr=0.3)
    q = poutine.trace(refined).get_trace(x).nodes["y"]["fn"]
    kl = kl_divergence(q, dist.OneHotCategorical(logits=m2.joint(x)))
    assert within(refined.elbo, m2.joint(x).logsumexp(1) - kl, refined.elbo_std_error + 1e-9)
    assert bool((kl < 0.01 * refined.improvement).all())
    # q(z|x, y) was exact, and has hardly moved.
    log_w = EnumeratedDraws(m2.model, refined, (x,), {})(100).log_w
    assert float((log_w - m2.joint(x).logsumexp(1)).abs().max()) < 0.05
    estimate = refined_importance_sampling(m2.model, m2.guide, x, steps=20, num_samples=50)
    assert float((estimate.log_px - m2.joint(x).logsumexp(1)).abs().max()) < 0.05
    assert bool((estimate.elbo < estimate.log_px).all())


def test_rows_of_the_data_have_their_own_parameters():
    """With a target for the error, data are estimated in groups: each keeps what was refined for it."""
    x = torch.cat([ORACLE.draw(6), ORACLE.draw(6, seed=1) + 5.0])

    def guide(x):
        mean, factor = ORACLE.posterior(x)
        stretch = torch.where(x.mean(-1) > 2.0, 2.0, 1.15)[:, None, None]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean + 0.2, scale_tril=stretch * factor))

    refined = refine(ORACLE.model, guide, x, steps=10)
    assert bool(refined.kept.all())
    rows = torch.tensor([7, 0, 11])
    torch.testing.assert_close(divergence(refined.take(rows), x[rows]), divergence(refined, x)[rows])
    torch.testing.assert_close(refined.take(rows).elbo, refined.elbo[rows])
    estimate = refined_importance_sampling(ORACLE.model, guide, x, steps=10, target_se=0.01)
    assert len(estimate.draws.unique()) > 1
    assert within(estimate.log_px, ORACLE.log_px(x), estimate.std_error)


def test_a_seed_fixes_the_refinement_and_leaves_the_generator():
    x = ORACLE.draw(3)

    def run(seed):
        torch.manual_seed(1)
        refined = refine(ORACLE.model, diagonal(1.0, 0.5), x, steps=5, seed=seed)
        return refined.offsets["z"][0], torch.rand(())

    first, after = run(3)
    again, same = run(3)
    other, _ = run(4)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert float(after) == float(same)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert float(after) == float(torch.rand(()))


def test_a_vae_keeps_its_parameters_and_gets_no_gradients():
    vae = VAE((6,), 2, (5,)).double()
    x = (torch.rand(8, 6, dtype=torch.float64) < 0.5).double()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    refined = refine(vae.model, vae.guide, x, steps=60)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in vae.named_parameters())
    assert not any(part.requires_grad for parts in refined.offsets.values() for part in parts)
    assert bool(refined.kept.any())
    assert bool((refined.improvement > -4 * refined.improvement_std_error - 1e-12).all())


@pytest.mark.parametrize(("steps", "particles", "draws"), [(0, 1, 2), (1, 3, 7), (5, 2, 30)])
def test_every_number_acts(steps, particles, draws):
    rows = []
    vae = VAE((6,), 2, (5,))
    vae.decoder.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[:-1].numel()))
    refined = refine(
        vae.model, vae.guide, torch.ones(4, 6), steps=steps, num_particles=particles, num_draws=draws, chunk_rows=20
    )
    # Two first traces of each set of draws, and one draw alone to compare with.
    first = 3 if steps else 2
    assert sum(rows) == 4 * (3 * first + steps * particles + 4 * draws)
    assert max(rows) <= 20
    assert refined.steps == steps


def test_an_autoguide_is_refined():
    x = ORACLE.draw(5)
    guide = AutoNormal(ORACLE.model, init_scale=0.3)
    guide(x)
    refined = refine(ORACLE.model, guide, x, lr=0.3)  # it starts at one point for all data
    best = ORACLE.log_px(x) - BEST_DIAGONAL
    assert float((best - refined.elbo).max()) < 4 * float(refined.elbo_std_error.max())
    assert float((best - refined.elbo_start).min()) > 0.5


def test_what_cannot_be_refined_is_refused():
    x = ORACLE.draw(3)

    def delta(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 3, dtype=x.dtype), event_dim=1))

    def uniform(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(-3 * torch.ones(3, dtype=x.dtype), 3.0).to_event(1))

    def coin(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=x.dtype)))

    def coins(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match="the guide needs parameters to move, but has no sites or only Delta sites"):
        refine(ORACLE.model, delta, x)
    with pytest.raises(
        ValueError,
        match="parameters can be moved freely, such as Normal, got Uniform",
    ):
        refine(ORACLE.model, uniform, x)
    with pytest.raises(ValueError, match="expected site 'z' to be reparameterized or enumerated, got Bernoulli"):
        refine(coins, coin, x)
    with pytest.raises(ValueError, match="num_draws: expected at least 2, got 1"):
        refine(ORACLE.model, ORACLE.guide(), x, num_draws=1)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        refine(ORACLE.model, ORACLE.guide(), x, seed=-1)
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        refine(ORACLE.model, ORACLE.guide(), x, steps=-1)
    refined = refine(ORACLE.model, ORACLE.guide(0.5), x, steps=5)
    with pytest.raises(ValueError, match="expected the data that it was refined for"):
        refined(ORACLE.draw(4))
