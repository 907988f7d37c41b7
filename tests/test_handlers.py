from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import elbo
from pyro_vae.handlers import check_kl_scales, scale_kl, scale_kl_pair


def model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)
        pyro.sample("label", dist.Bernoulli(0.5), infer={"auxiliary_loss": True})


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(x / 3, 0.8))
        pyro.sample("b", dist.Normal(x / 2, 0.7))
        pyro.sample("label", dist.Bernoulli(0.5), infer={"auxiliary_loss": True})


X = torch.tensor([0.5, -1.0, 2.0])


def _scales(fn):
    trace = poutine.trace(fn).get_trace(X)
    return {n: s["scale"] for n, s in trace.nodes.items() if s["type"] == "sample" and n != "data"}


def test_only_latent_sites_are_scaled():
    assert _scales(scale_kl(model, 4.0)) == {"a": 4.0, "b": 4.0, "x": 1.0, "label": 1.0}


def test_sites_are_chosen_by_name():
    assert _scales(scale_kl(model, 0.0, sites=["b"])) == {"a": 1.0, "b": 0.0, "x": 1.0, "label": 1.0}
    assert _scales(scale_kl(model, 0.5, sites="a")) == {"a": 0.5, "b": 1.0, "x": 1.0, "label": 1.0}


def test_nested_weights_multiply_and_are_recorded():
    trace = poutine.trace(scale_kl(scale_kl(guide, 2.0), 3.0, sites=["a"])).get_trace(X)
    assert trace.nodes["a"]["scale"] == 6.0
    assert trace.nodes["a"]["infer"]["kl_scale"] == 6.0
    assert trace.nodes["a"]["kl_scales"] == (2.0, 3.0)
    assert trace.nodes["b"]["infer"]["kl_scale"] == 2.0
    assert "kl_scale" not in trace.nodes["label"]["infer"]


def test_as_a_context_manager():
    with scale_kl(beta=3.0):
        trace = poutine.trace(guide).get_trace(X)
    assert trace.nodes["a"]["scale"] == 3.0


def test_the_record_survives_replay():
    guide_trace = poutine.trace(scale_kl(guide, 2.0)).get_trace(X)
    trace = poutine.trace(poutine.replay(scale_kl(model, 2.0), trace=guide_trace)).get_trace(X)
    assert trace.nodes["a"]["kl_scales"] == (2.0,)
    check_kl_scales(trace, guide_trace)
    unscaled = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(X)
    with pytest.raises(ValueError, match=r"site 'a'.*got 1 in the model and \[2.0\] in the guide; use scale_kl_pair"):
        check_kl_scales(unscaled, guide_trace)


def test_a_callers_infer_dict_is_not_written_to():
    infer = {"note": 1}

    def fn(x):
        pyro.sample("z", dist.Normal(0.0, 1.0), infer=infer)

    scale_kl(fn, 2.0)(X)
    assert infer == {"note": 1}


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf, torch.tensor(-0.1), torch.tensor([1.0, math.nan])])
def test_bad_weights_are_refused(beta):
    with pytest.raises(ValueError, match="beta: expected finite numbers of at least 0"):
        scale_kl(model, beta)
    with pytest.raises(ValueError, match="beta: expected finite numbers of at least 0"):
        scale_kl_pair(model, guide, {"a": beta})


@pytest.mark.parametrize("beta", ["4", True, None])
def test_a_weight_that_is_no_number_is_refused(beta):
    with pytest.raises(TypeError, match="beta: expected a number or a tensor, got"):
        scale_kl(model, beta)


def test_weights_are_compared_by_their_product():
    x = X
    same = (scale_kl(model, 0.1), scale_kl(guide, torch.tensor(0.1, dtype=torch.float64)))
    assert elbo("trace").bound(*same, x).shape == (3,)
    nested = (scale_kl(scale_kl(model, 2.0), 3.0), scale_kl(guide, 6.0))
    assert elbo("trace").bound(*nested, x).shape == (3,)
    scaled = scale_kl(model, torch.ones(3) * 2)
    guide_trace = poutine.trace(scale_kl(guide, torch.ones(3) * 2)).get_trace(x)
    guide_trace.nodes["a"]["kl_scales"] = (torch.ones(2) * 2,)
    model_trace = poutine.trace(poutine.replay(scaled, trace=guide_trace)).get_trace(x)
    with pytest.raises(ValueError, match="same KL weight in model and guide"):
        check_kl_scales(model_trace, guide_trace)


def test_a_site_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"latent site named 'z'.*\['a', 'b'\]"):
        scale_kl(model, 2.0, sites=["z"])(X)
    # The error of the program itself is not hidden.
    with pytest.raises(ZeroDivisionError):
        scale_kl(lambda: 1 / 0, 2.0, sites=["z"])()


def test_a_tensor_changed_in_place_stays_live():
    beta = torch.tensor(1.0)
    scaled = scale_kl(model, beta)
    assert float(_scales(scaled)["a"]) == 1.0
    beta.fill_(0.25)
    assert float(_scales(scaled)["a"]) == 0.25


def _kl_parts():
    """The KL of each site and datum for this guide, by hand: b given a has its mean over a ~ q."""
    a_loc, a_scale, b_loc, b_scale = X / 3, 0.8, X / 2, 0.7
    kl_a = 0.5 * (a_loc**2 + a_scale**2 - 1) - math.log(a_scale)
    kl_b = 0.5 * ((b_loc - a_loc) ** 2 + a_scale**2 + b_scale**2 - 1) - math.log(b_scale)
    distortion = 0.5 * ((X - b_loc) ** 2 + b_scale**2) + 0.5 * math.log(2 * math.pi)
    return kl_a, kl_b, distortion


@pytest.mark.parametrize("name", ["trace", "mean-field"])
@pytest.mark.parametrize("beta", [{"a": 0.5, "b": 2.0}, {"b": 0.0}, torch.tensor([0.0, 1.0, 3.0])])
def test_weights_per_site_and_per_datum(name, beta):
    kl_a, kl_b, distortion = _kl_parts()
    betas = beta if isinstance(beta, dict) else {"a": beta, "b": beta}
    exact = (distortion + betas.get("a", 1.0) * kl_a + betas.get("b", 1.0) * kl_b).sum()

    def clean(fn):
        return poutine.block(fn, hide=["label"])

    objective = elbo(name, num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    pair = scale_kl_pair(clean(model), clean(guide), beta)
    losses = torch.tensor([objective.loss(*pair, X) for _ in range(60)])
    error = losses.std() / math.sqrt(60)
    assert abs(losses.mean() - exact) < 4 * error
    assert error < 0.05
