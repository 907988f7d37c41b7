from __future__ import annotations

import copy
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import evidence
from pyro_vae.evidence.inpainting import hidden_log_px, inpaint
from pyro_vae.inference.capture import graph as capture
from pyro_vae.models.inpainting import MASKS, InpaintingVAE, Partial, seen
from pyro_vae.models.linear import LinearVAE
from pyro_vae.models.registry import MODELS
from pyro_vae.testing import check_elbo_bounds
from tests.oracles import within

VISIBLE = torch.tensor([[True, False, True], [True, False, False]])


def linear() -> LinearVAE:
    torch.manual_seed(3)
    vae = LinearVAE((2, 3), 2).double().eval()
    with torch.no_grad():
        vae.weight.normal_()
        vae.decoder.head.bias.normal_()
        vae.likelihood.log_scale.fill_(-0.7)
    return vae


class Exact:
    """p(x_H, z | x_V) of a linear-Gaussian model, from the joint covariance."""

    def __init__(self, vae: LinearVAE, visible: Tensor) -> None:
        weight, self.bias = vae.weight.detach(), vae.decoder.head.bias.detach()
        self.cov = weight @ weight.T + float(vae.scale.detach()) ** 2 * torch.eye(6, dtype=torch.float64)
        self.weight, self.v, self.h = weight, visible.flatten(), ~visible.flatten()

    def _gain(self, cross: Tensor) -> Tensor:
        return cross @ torch.linalg.inv(self.cov[self.v][:, self.v])

    def z(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gain = self._gain(self.weight.T[:, self.v])
        cov = torch.eye(2, dtype=torch.float64) - gain @ self.weight[self.v]
        return (x.flatten(1) - self.bias)[:, self.v] @ gain.T, cov

    def hidden(self, x: Tensor) -> dist.MultivariateNormal:
        gain = self._gain(self.cov[self.h][:, self.v])
        mean = self.bias[self.h] + (x.flatten(1) - self.bias)[:, self.v] @ gain.T
        return dist.MultivariateNormal(mean, self.cov[self.h][:, self.h] - gain @ self.cov[self.v][:, self.h])

    def log_visible(self, x: Tensor) -> Tensor:
        return dist.MultivariateNormal(self.bias[self.v], self.cov[self.v][:, self.v]).log_prob(x.flatten(1)[:, self.v])


@pytest.mark.parametrize(("method", "num", "steps"), [("importance", 4000, 60), ("hmc", 400, 30)])
def test_fillings_follow_the_conditional(method, num, steps):
    vae = linear()
    x = vae.sample(3)
    exact = Exact(vae, VISIBLE)
    given = torch.where(VISIBLE, x, math.nan)
    found = inpaint(vae, given, VISIBLE, num_fillings=3000, method=method, num_samples=num, num_steps=steps, seed=0)
    assert torch.equal(found.images[:, :, VISIBLE], x[:, VISIBLE].expand(3000, 3, -1))
    assert torch.equal(found.mean[:, VISIBLE], x[:, VISIBLE])
    assert bool((found.spread[:, VISIBLE] == 0).all())

    mean, cov = exact.z(x)
    ess = found.estimate.ess
    assert float(ess.min()) > 0.3 * num
    map_cov = exact.weight[exact.h] @ cov @ exact.weight[exact.h].T
    wide = map_cov.diagonal().sqrt()
    assert within(found.mean[:, ~VISIBLE], exact.hidden(x).mean, wide / ess[:, None].sqrt(), 5)
    assert within(found.spread[:, ~VISIBLE], wide.expand(3, -1), wide / (2 * ess[:, None]).sqrt(), 5)

    draws = 1 / (1 / ess + 1 / 3000)  # resampled from these, and by chance
    assert within(found.z.mean(0), mean, (cov.diagonal() / draws[:, None]).sqrt(), 5)
    assert within(found.z.std(0), cov.diagonal().sqrt().expand(3, -1), (cov.diagonal() / 2 / draws[:, None]).sqrt(), 6)
    assert within(found.estimate.log_px, exact.log_visible(x), found.estimate.std_error + 1e-6, 5)


def test_all_refine_the_guide_as_refined_importance_sampling_does(monkeypatch):
    """Of the same data, from the same noise, each would have the same proposal."""
    asked, usual = [], evidence.refine

    def refine(*args, **options):
        asked.append(options)
        return usual(*args, **options)

    for module in ("inpainting", "refinement.refined_importance"):
        monkeypatch.setattr(f"pyro_vae.evidence.{module}.refine", refine)
    vae = linear()
    x = vae.sample(3)
    inpaint(vae, x, VISIBLE, num_samples=20, num_steps=2, seed=0)
    hidden_log_px(vae, x, VISIBLE, num_samples=20, num_steps=2, seed=0)
    partial = Partial(vae)
    evidence.refined_importance_sampling(
        partial.model, partial.guide, x, VISIBLE.expand(x.shape), steps=2, num_samples=20
    )
    kept = [{name: options[name] for name in ("num_particles", "full_covariance", "steps")} for options in asked]
    assert kept == [{"num_particles": 8, "full_covariance": True, "steps": 2}] * 4


def test_the_likelihood_of_hidden_pixels():
    vae = linear()
    x = vae.sample(6)
    visible = torch.stack([VISIBLE, ~VISIBLE] * 3)
    exact = [Exact(vae, v).hidden(x[k : k + 1]).log_prob(x[k][~v]) for k, v in enumerate(visible)]
    found = hidden_log_px(vae, x, visible, num_samples=500, num_steps=60, seed=0)
    assert float(found.std_error.max()) < 0.1
    assert within(found.log_px, torch.cat(exact), found.std_error + 1e-6, 5)
    assert bool(found.reliable.all())
    mean, error = found.mean()
    assert mean == pytest.approx(float(found.log_px.mean()))
    assert error == pytest.approx(float(found.std_error.square().sum().sqrt()) / 6)


@pytest.mark.parametrize("seed", [0, pytest.param(None, marks=pytest.mark.slow)])
def test_the_stated_error_of_hidden_pixels_is_that_of_repeated_estimates(seed):
    torch.manual_seed(0)
    vae = pv.VAE((2, 3), 2, (), likelihood="normal").double()
    with torch.no_grad():
        for p in vae.parameters():
            p.zero_()  # q begins as N(0, I), which is wider than the posterior
        vae.decoder.head.weight.normal_()
        vae.likelihood.log_scale.fill_(0.0)
        weight, x = vae.decoder.head.weight, 0.2 * vae.sample(6)  # whose posteriors lie well within q
    cov = weight @ weight.T + torch.eye(6, dtype=torch.float64)
    v = VISIBLE.flatten()
    whole, part = (
        dist.MultivariateNormal(torch.zeros(int(some.sum())).double(), cov[some][:, some]).log_prob(
            x.flatten(1)[:, some]
        )
        for some in (v | ~v, v)
    )

    again, num = 60, 300  # each copy of a datum has noise of its own
    found = hidden_log_px(vae, x.repeat(again, 1, 1), VISIBLE, num, num_steps=1, seed=seed)
    error = (found.log_px - (whole - part).detach().repeat(again)).unflatten(0, (again, 6))
    assert float(found.reliable.double().mean()) > 0.9  # few draws
    stated = found.std_error.unflatten(0, (again, 6)).square().nanmean(0).sqrt()
    assert within((error / stated).square().mean(), 1.0, (2 / error.numel()) ** 0.5, 4)
    average = error.mean(1) / (stated.square().sum().sqrt() / 6)
    assert within(average.square().mean(), 1.0, (2 / again) ** 0.5, 4)
    apart = (found.whole.std_error.square() + found.visible.std_error.square()).sqrt()
    assert float((found.std_error / apart).nanmedian()) < 0.5  # the noise that both share leaves their difference


@pytest.mark.parametrize("method", ["importance", "hmc"])
def test_all_pixels_may_be_hidden_or_none(method):
    vae = linear()
    x, own = vae.sample(4), {"num_samples": 400, "num_steps": 60, "seed": 0}
    every, none = VISIBLE | ~VISIBLE, VISIBLE & ~VISIBLE
    whole = inpaint(vae, x, every, method=method, **own)
    assert torch.equal(whole.images, x.expand_as(whole.images))
    assert not bool(whole.spread.any())
    assert within(whole.estimate.log_px, vae.log_px(x), whole.estimate.std_error + 1e-6, 5)
    free = inpaint(vae, torch.full_like(x, math.nan), none, method=method, **own)
    error = ((vae.weight @ vae.weight.T).diagonal().detach() / free.estimate.ess[:, None]).sqrt()
    assert within(free.mean.flatten(1), vae.decoder.head.bias.expand(4, -1), error, 5)  # E[x] under the prior
    if method == "importance":
        seen_all, seen_none = (hidden_log_px(vae, x, mask, num_samples=400, num_steps=60) for mask in (every, none))
        assert not bool(seen_all.log_px.any() or seen_all.std_error.any())
        assert within(seen_none.log_px, vae.log_px(x), seen_none.std_error + 1e-6, 5)


def test_masks_may_be_arrays_of_ones_and_zeros():
    vae = linear()
    x = vae.sample(2)
    first, second = (
        inpaint(vae, x, mask, num_samples=50, num_steps=3, seed=0).mean for mask in (VISIBLE, VISIBLE.long().numpy())
    )
    assert torch.equal(first, second)


def test_the_masked_likelihood_leaves_out_hidden_pixels():
    p = dist.Bernoulli(torch.tensor([[0.2, 0.5, 0.9], [0.4, 0.6, 0.7]])).to_event(2)
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    expected = math.log(0.2) + math.log(0.9) + math.log(0.6)
    torch.testing.assert_close(seen(p, VISIBLE).log_prob(x), torch.tensor(expected))
    correlated = dist.MultivariateNormal(torch.zeros(3), torch.eye(3)).expand([2]).to_event(1)
    with pytest.raises(ValueError, match="likelihood: expected independent pixels"):
        seen(correlated, VISIBLE)


@pytest.mark.parametrize("name", pv.distributions.LIKELIHOODS)
def test_the_partial_model_passes_the_laws(name):
    torch.manual_seed(0)
    vae = pv.VAE((2, 3), 2, (5,), likelihood=name).eval()
    partial, x = Partial(vae), vae.sample(8)
    check_elbo_bounds(partial.model, partial.guide, x, VISIBLE.expand(8, 2, 3), num_samples=100)
    blank = torch.where(VISIBLE, x, math.nan)
    first, second = (
        pv.evidence.importance_sampling(partial.model, partial.guide, d, VISIBLE, num_samples=50, seed=0)
        for d in (x, blank)
    )
    torch.testing.assert_close(first.log_px, second.log_px)


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    torch.manual_seed(0)
    vae = InpaintingVAE((2, 6, 5), 2, (4,), mask=name)
    x = torch.zeros(8000, 2, 6, 5)
    visible = vae.draw_mask(x)
    assert visible.shape == x.shape
    assert torch.equal(visible[:, 0], visible[:, 1])  # a pixel is seen or not, in all its channels
    whole = visible.flatten(1).all(1)
    assert abs(float(whole.double().mean()) - 0.5) < 0.05
    visible = visible[~whole]
    hidden = (~visible[:, 0]).sum((1, 2))
    kinds = len({tuple(v.flatten().tolist()) for v in visible[:, 0]})
    if name == "square":
        assert set(hidden.tolist()) == {6}  # 3 x 2
        assert kinds == 4 * 4
    elif name == "half":
        assert set(hidden.tolist()) == {15, 6 * 2, 6 * 3}
        assert kinds == 4
    else:
        share = 1 - visible[:, 0].double().mean((1, 2))
        assert (
            abs(float(share.mean()) - 0.5) < 4 * math.sqrt((1 / 12 + 1 / 6 / 30) / 4000) + 1 / 60
        )  # a few of these are whole
        assert float(share.min()) < 0.05
        assert float(share.max()) > 0.95


@pytest.mark.parametrize("mask", MASKS)
def test_it_passes_every_law(mask):
    torch.manual_seed(0)
    vae = InpaintingVAE((1, 2, 3), 2, (5,), likelihood="normal", mask=mask).double().eval()
    report = check_elbo_bounds(vae.model, vae.guide, torch.randn(10, 1, 2, 3, dtype=torch.float64), num_samples=100)
    assert report.laws["posterior"] == "held"


@pytest.mark.parametrize("elbo", ["trace", "mean-field", "iwae", "miwae"])
def test_model_and_guide_see_one_mask(elbo):
    """The bound of a step is that of the partial model under the mask that was drawn."""
    torch.manual_seed(0)
    vae = InpaintingVAE((1, 2, 3), 2, (5,), mask="pixels", likelihood="normal").double()
    x, drawn = torch.randn(500, 1, 2, 3, dtype=torch.float64), []
    vae.draw_mask = lambda x: drawn.append(InpaintingVAE.draw_mask(vae, x)) or drawn[-1]
    terms = pv.elbo(elbo).terms(vae.model, vae.guide, x)
    terms.loss.backward()
    assert all(p.grad is not None for p in vae.parameters())
    partial = Partial(vae)
    with torch.no_grad():
        bounds = torch.stack([pv.elbo(elbo).bound(partial.model, partial.guide, x, drawn[-1]) for _ in range(20)])
        whole = pv.elbo(elbo).bound(vae.eval().model, vae.guide, x).sum()
    error = math.sqrt(float(bounds.var(0).sum()) * (1 + 1 / 20))
    assert within(-terms.loss.detach(), bounds.mean(0).sum(), error)
    assert float(whole - bounds.mean(0).sum()) < -20 * error


@pytest.mark.parametrize("elbo", ["stl", "dreg"])
def test_objectives_that_run_the_guide_again_say_so(elbo):
    vae = InpaintingVAE((1, 2, 3), 2, (5,))
    with pytest.raises(ValueError, match="remove random numbers outside sample sites"):
        pv.elbo(elbo).terms(vae.model, vae.guide, torch.ones(4, 1, 2, 3))


def test_a_mask_belongs_to_the_data_it_was_drawn_for():
    torch.manual_seed(0)
    vae = InpaintingVAE((1, 2, 3), 2, (5,), mask="pixels")
    x = torch.ones(4, 1, 2, 3)
    vae.guide(x)
    assert poutine.trace(vae.model).get_trace(x).nodes["x"]["fn"].base_dist._mask is not None
    assert not hasattr(poutine.trace(vae.model).get_trace(x.clone()).nodes["x"]["fn"].base_dist, "_mask")
    assert copy.deepcopy(vae)._drawn.x is None


@pytest.mark.parametrize(
    "inductor",
    [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")])],
)
def test_compiled_steps_draw_new_masks(inductor, monkeypatch):
    if not inductor:
        monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)
    x, losses, states = torch.bernoulli(torch.full((64, 1, 2, 3), 0.5, dtype=torch.float64)), [], []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = InpaintingVAE((1, 2, 3), 2, (5,), mask="pixels").double()
        svi = pv.SVI(
            vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.elbo("iwae", num_particles=3), compile=compile
        )
        svi.step(x)  # with a mask of its own, of these very data
        torch.manual_seed(1)
        # By turns the same tensor and another of the same values: a mask belongs to a step, not to a tensor.
        losses.append([svi.step(x if step % 2 else x.clone()) for step in range(6)])
        states.append([p.detach().clone() for p in vae.parameters()])
        assert svi.compiled is compile
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    torch.testing.assert_close(states[1], states[0])


def test_a_replayed_graph_scores_what_its_own_mask_leaves(monkeypatch):
    """Of a decoder that reads nothing, and a q(z|x) that is the prior, a step's loss is a sum over its visible pixels."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)
    torch.manual_seed(0)
    vae = InpaintingVAE((1, 2, 3), 2, (), mask="pixels").double()
    with torch.no_grad():
        for p in vae.parameters():
            p.zero_()
        vae.decoder.head.bias.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1, -0.7, 1.3]))
    x = torch.bernoulli(torch.full((5, 1, 2, 3), 0.5, dtype=torch.float64))
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), pv.elbo("trace"), compile=True)
    svi.step(x)
    assert svi.compiled
    terms = dist.Bernoulli(logits=vae.decoder.head.bias.detach().reshape(1, 2, 3)).log_prob(x)
    found, exact = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        found.append(svi.step(x))
        torch.manual_seed(seed)
        exact.append(-float(terms[vae.draw_mask(x)].sum()))
    assert len({round(loss, 6) for loss in found}) > 4
    assert found == pytest.approx(exact, rel=1e-9)


def test_the_encoder_alone_may_be_trained():

    torch.manual_seed(0)
    trained = pv.VAE((1, 2, 3), 2, (5,))
    before = {k: v.clone() for k, v in trained.decoder.state_dict().items()}
    vae = InpaintingVAE((1, 2, 3), 2, (5,), decoder=trained.decoder.requires_grad_(False), mask="pixels")
    start = vae.encoder.head.weight.detach().clone()
    x = torch.bernoulli(torch.full((64, 1, 2, 3), 0.5))
    pv.fit(vae, x, epochs=2, batch_size=32, compile=False, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in vae.decoder.state_dict().items())
    assert not torch.equal(vae.encoder.head.weight, start)


def test_hidden_pixels_enter_nothing():
    torch.manual_seed(0)
    vae = InpaintingVAE((2, 2, 3), 2, (5,), likelihood="normal").eval()
    x, other = torch.randn(2, 4, 2, 2, 3)
    other = torch.where(VISIBLE, x, other)
    assert torch.equal(vae.encode(x, VISIBLE).mean, vae.encode(other, VISIBLE).mean)
    assert not torch.equal(vae.encode(x).mean, vae.encode(x, VISIBLE).mean)
    assert Partial(vae).background is None


def test_an_encoder_trained_on_masks_is_the_better_proposal():
    truth = linear().float()
    torch.manual_seed(0)
    x = truth.sample(2000)[:, None]
    plain, masked = (
        make((1, 2, 3), 2, (16,), likelihood="normal", **own)
        for make, own in ((pv.VAE, {}), (InpaintingVAE, {"mask": "pixels"}))
    )
    bounds = []
    for vae in (plain, masked):
        pv.fit(vae, x, epochs=25, batch_size=100, lr=0.01, compile=False, progress=False)
        partial = Partial(vae)
        estimate = pv.evidence.importance_sampling(
            partial.model, partial.guide, x[:200], VISIBLE[None], num_samples=200, seed=0
        )
        bounds.append(estimate.summary())
    exact = float(Exact(truth.double(), VISIBLE).log_visible(x[:200].double()).mean())
    assert bounds[1].elbo > bounds[0].elbo + 0.3
    assert abs(bounds[1].log_px - exact) < 0.3


def test_bad_masks_are_refused():
    vae = linear()
    x = vae.sample(4)
    with pytest.raises(
        ValueError, match=r"visible: expected a mask of shape \(2, 3\) for all data, or \(4, 2, 3\) for each datum"
    ):
        inpaint(vae, x, torch.ones(3, 2))
    for nothing, name in ((None, "NoneType"), ("left", "str")):
        with pytest.raises(ValueError, match=rf"visible: expected a mask of shape \(2, 3\), got {name}; give a tensor"):
            inpaint(vae, x, nothing)
    for other in (0.5, math.nan):
        with pytest.raises(ValueError, match="visible: expected True and False, or 1 and 0, got other values"):
            hidden_log_px(vae, x, torch.full((2, 3), other))
    with pytest.raises(ValueError, match=r"got \(2, 2, 3\); give a mask of one of these shapes"):
        inpaint(vae, x, VISIBLE.expand(2, 2, 3))  # masks of two data, for four
    with pytest.raises(ValueError, match=r"method: expected one of \['importance', 'hmc'\], got 'gibbs'"):
        inpaint(vae, x, VISIBLE, method="gibbs")
    with pytest.raises(ValueError, match="num_fillings: expected at least 1, got 0"):
        inpaint(vae, x, VISIBLE, num_fillings=0)
    with pytest.raises(ValueError, match="unknown mask 'circle'"):
        InpaintingVAE((1, 4, 4), 2, mask="circle")
    with pytest.raises(ValueError, match="data_shape: expected images of at least 2 x 2 pixels"):
        InpaintingVAE((6,), 2)


def test_an_encoder_of_ones_own_takes_pixels_and_mask():
    encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(2 * 6, 4))
    vae = InpaintingVAE((1, 2, 3), 2, encoder=encoder)
    assert vae.encode(torch.zeros(5, 1, 2, 3), VISIBLE).mean.shape == (5, 2)


@pytest.mark.parametrize("name", [n for n, cls in MODELS.items() if "y" in cls.takes or not cls.has_bound])
def test_models_that_cannot_be_filled_are_refused(name):
    model = MODELS[name]((1, 4, 4), 2, **({"num_classes": 3} if "y" in MODELS[name].takes else {}))
    why = "takes x and y" if "y" in model.takes else "has no prior()"
    sentence = rf"vae: inpainting needs a model of x alone .*, but {type(model).__name__} {re.escape(why)}; use a VAE"
    x, visible = torch.zeros(2, 1, 4, 4), torch.ones(1, 4, 4)
    for call in (lambda: Partial(model), lambda: inpaint(model, x, visible), lambda: hidden_log_px(model, x, visible)):
        with pytest.raises(ValueError, match=sentence):
            call()
