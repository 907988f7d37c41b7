from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyro_vae import VAE
from pyro_vae.evidence.annealing.annealed import annealed_importance_sampling
from pyro_vae.evidence.annealing.compiled import CapturedPath
from pyro_vae.evidence.annealing.hmc import evaluation
from pyro_vae.evidence.annealing.path import AnnealingPath
from tests.oracles import LinearGaussian, within

ORACLE = LinearGaussian()
DOUBLE = {"dtype": torch.float64}


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
    joint = AnnealingPath(conjugate_model, None, (COUNTS, VOTES), {})
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
    joint = AnnealingPath(model, None, (x,), {})
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
    joint = AnnealingPath(ORACLE.model, guide, (x,), {}, start)
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


def test_a_program_that_indexes_from_the_left_goes_chain_by_chain():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)

    x = torch.tensor([0.5, 2.0, -1.0], **DOUBLE)
    with pytest.warns(UserWarning, match="the chains run one by one"):
        joint = AnnealingPath(model, None, (x,), {})
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
    whole, masked = (AnnealingPath(model, None, (x, flag), {}) for flag in (False, True))
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


@pytest.mark.slow
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_compiled_gradients_are_the_eager_ones_in_every_batch(start):
    vae, captured = VAE((6,), 2, (5,)), CapturedPath()
    for k in range(3):
        x = (torch.rand(4, 6) > 0.2 * k + 0.2).float()
        joint = AnnealingPath(vae.model, vae.guide, (x,), {}, start)
        u = joint.draw(3)
        compiled, eager = captured(joint, u), evaluation(joint.terms)
        for shifted in (u, u + 1):
            for ours, theirs in zip(compiled(shifted), eager(shifted), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (captured.captures, captured.reason) == (1, None)


@pytest.mark.slow
def test_a_model_that_changed_is_captured_again():
    x, captured = torch.ones(4, 6), CapturedPath()
    for vae in (VAE((6,), 2, (5,)), VAE((6,), 2, (5,))):
        joint = AnnealingPath(vae.model, vae.guide, (x,), {})
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
    with pytest.warns(UserWarning, match="gradients cannot be compiled and are computed eagerly"):
        estimate = annealed_importance_sampling(model, None, x, num_steps=2, num_leapfrog=1, compile=True)
    assert bool(estimate.log_px.isfinite().all())
