from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import VAE
from pyro_vae.distributions import LIKELIHOODS, LearnedNormal, Normal
from pyro_vae.models.base import mean_image


def test_sites_plate_and_registered_networks():
    vae = VAE((1, 4, 3), 5, (7,), likelihood="normal")
    trace = poutine.trace(vae.model).get_trace(torch.zeros(6, 1, 4, 3))
    assert trace.nodes["z"]["value"].shape == (6, 5)
    assert trace.nodes["x"]["fn"].event_shape == (1, 4, 3)
    assert [f.name for f in trace.nodes["x"]["cond_indep_stack"]] == ["data"]
    guide_trace = poutine.trace(vae.guide).get_trace(torch.zeros(6, 1, 4, 3))
    assert guide_trace.nodes["z"]["fn"].batch_shape == (6,)
    names = {n for t in (trace, guide_trace) for n, s in t.nodes.items() if s["type"] == "param"}
    own = {f"{vae.name}.{n.split('.')[0]}$$${n.split('.', 1)[1]}" for n, _ in vae.named_parameters()}
    assert names == own


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_leading_dimensions_fold(likelihood):
    vae = VAE((1, 4, 3), 5, (7, 6), likelihood=likelihood)
    x = torch.rand(2, 3, 1, 4, 3)
    z = torch.randn(2, 3, 5)
    torch.testing.assert_close(vae.encode(x).mean[1], vae.encode(x[1]).mean)
    torch.testing.assert_close(mean_image(vae.decode(z))[1], mean_image(vae.decode(z[1])))
    assert vae.decode(z).batch_shape == (2, 3)


def test_hidden_is_mirrored_and_may_be_empty():
    vae = VAE((6,), 2, (5, 4))
    shapes = [tuple(p.shape) for n, p in vae.named_parameters() if n.endswith("weight")]
    assert shapes == [(5, 6), (4, 5), (4, 4), (4, 2), (5, 4), (6, 5)]
    linear = VAE((6,), 2, ())
    z = torch.randn(3, 2)
    decode = linear.decoder
    torch.testing.assert_close(decode(z) + decode(-z), 2 * decode(torch.zeros(3, 2)))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_output_starts_at_the_mean(likelihood):
    vae = VAE((2, 3), 2, (4,), likelihood=likelihood)
    mean = torch.tensor([[0.1, 0.5, 0.9], [0.0, 1.0, 0.3]])
    vae.center_output(mean)
    with torch.no_grad():
        vae.decoder.head.weight.zero_()
        got = mean_image(vae.decode(torch.zeros(1, 2)))[0]
    if likelihood == "continuous-bernoulli":
        assert bool(((got - 0.5) * (mean - 0.5) >= 0).all())
    else:
        torch.testing.assert_close(got, mean.clamp(1e-3, 1 - 1e-3) if likelihood == "bernoulli" else mean)


def test_center_output_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"mean: expected shape \(6,\)"):
        VAE((6,), 2).center_output(torch.zeros(5))
    with pytest.raises(ValueError, match="linear `head`"):
        VAE((6,), 2, decoder=nn.Linear(2, 6)).center_output(torch.zeros(6))


def test_own_networks_and_distributions():
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)
    vae = VAE((6,), 2, encoder=encoder, decoder=decoder)
    x = torch.rand(3, 6)
    torch.testing.assert_close(vae.encode(x).mean, encoder(x)[:, :2])
    torch.testing.assert_close(vae.encode(x).base_dist.stddev, encoder(x)[:, 2:].exp())
    assert vae.decoder is decoder


def test_sample_and_reconstruct():
    torch.manual_seed(0)
    vae = VAE((1, 2, 2), 3, (8,))
    draws = vae.sample(500)
    assert draws.shape == (500, 1, 2, 2)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    z = torch.randn(20_000, 3)
    mean = mean_image(vae.decode(z)).mean(0).detach()
    assert bool(((draws.mean(0) - mean).abs() < 4 * (mean * (1 - mean) / 500).sqrt()).all())
    x = torch.ones(4, 1, 2, 2)
    again = vae.reconstruct(x)
    assert again.shape == x.shape
    assert bool(((again > 0) & (again < 1)).all())
    assert not again.requires_grad
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        vae.sample(0)


def test_every_instance_registers_under_its_own_name():
    first, second = VAE((6,), 2), VAE((6,), 2)
    copied = copy.deepcopy(first)
    assert len({first.name, second.name, copied.name}) == 3
    assert first.name == first.name
    name = first.name
    del first
    assert VAE((6,), 2).name != name  # its parameters may still be in the store


def test_a_stale_store_is_refused():
    vae = VAE((6,), 2)
    pyro.param(f"{vae.name}.decoder$$$layers.0.weight", torch.zeros(256, 2))
    with pytest.raises(RuntimeError, match="would never train; call pyro.clear_param_store"):
        vae.model(torch.zeros(3, 6))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latent_dim": 0}, "latent_dim: expected at least 1, got 0"),
        ({"data_shape": (0, 3)}, "data_shape: expected positive sizes"),
        ({"data_shape": ()}, "data_shape: expected positive sizes"),
        ({"hidden": (5, 0)}, "hidden: expected widths of at least 1"),
        ({"activation": "tan"}, "unknown activation 'tan'.*did you mean 'tanh'"),
        ({"likelihood": "bernouli"}, "did you mean 'bernoulli'"),
        ({"posterior": "norml"}, "did you mean 'normal'"),
        ({"prior": "gaussian"}, "unknown prior 'gaussian': expected one of diagonal-normal, normal"),
    ],
)
def test_bad_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAE(**{"data_shape": (6,), "latent_dim": 2, **options})


def test_data_of_another_shape_are_refused():
    vae = VAE((1, 2, 3), 2, (5,))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 1, 2, 3\), got \(4, 6\)"):
        vae.guide(torch.zeros(4, 6))


def test_it_survives_saving_and_double_precision():
    vae = VAE((6,), 2, (5,), likelihood="normal")
    other = VAE((6,), 2, (5,), likelihood="normal")
    other.load_state_dict(vae.state_dict())
    z = torch.randn(3, 2)
    torch.testing.assert_close(vae.decode(z).mean, other.decode(z).mean, rtol=0, atol=0)
    assert vae.double().prior().sample().dtype == torch.float64
    assert math.prod(vae.data_shape) == 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": nn.Linear(2, 2)}, "network: .*got a module, Linear; pass modules as encoder= and decoder="),
        ({"prior": LearnedNormal}, r"prior: .*got the class LearnedNormal; pass an instance, LearnedNormal\(2\)"),
        ({"likelihood": Normal}, r"likelihood: .*got the class Normal; pass an instance, Normal\(\(4,\)\)"),
    ],
)
def test_a_module_or_a_class_in_the_wrong_place_is_refused_with_the_right_one(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAE((4,), 2, **options)
