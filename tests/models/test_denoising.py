from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae.inference.capture import graph as capture
from pyro_vae.models.autoencoder import squared_error
from pyro_vae.models.base import mean_image
from pyro_vae.models.denoising import NOISES, DenoisingVAE, Noise, denoise
from pyro_vae.testing import BrokenBound, check_elbo_bounds

WORDS = ("gaussian:0.5", "masking:0.3", "salt-and-pepper:0.4")


def linear(words: str = "gaussian:0.5") -> DenoisingVAE:
    """Linear throughout, so that log p(x) is a closed form."""
    torch.manual_seed(0)
    return DenoisingVAE((6,), 2, (), likelihood="normal", noise=words).double()


def exact(vae: DenoisingVAE, x: torch.Tensor) -> torch.Tensor:
    weight, bias = vae.decoder.head.weight.detach(), vae.decoder.head.bias.detach()
    noise = float(vae.likelihood.log_scale.detach().exp()) ** 2
    covariance = weight @ weight.T + noise * torch.eye(6, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)


def data(num: int = 12) -> torch.Tensor:
    return torch.randn(num, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_each_noise_has_its_stated_distribution():
    torch.manual_seed(0)
    x = torch.full((200_000,), 0.25, dtype=torch.float64)
    error = math.sqrt(0.3 * 0.7 / len(x))
    added = Noise("gaussian:0.3")(x) - x
    assert abs(float(added.mean())) < 4 * 0.3 / math.sqrt(len(x))
    assert abs(float(added.std()) - 0.3) < 4 * 0.3 / math.sqrt(2 * len(x))
    masked = Noise("masking:0.3")(x)
    assert set(masked.unique().tolist()) == {0.0, 0.25}
    assert abs(float((masked == 0).double().mean()) - 0.3) < 4 * error
    salted = Noise("salt-and-pepper:0.6")(x)
    assert set(salted.unique().tolist()) == {0.0, 0.25, 1.0}
    for value in (0.0, 1.0):
        assert abs(float((salted == value).double().mean()) - 0.3) < 4 * error


@pytest.mark.parametrize("name", NOISES)
def test_no_noise_at_level_0_and_new_noise_at_each_call(name):
    x = torch.rand(50)
    assert torch.equal(Noise(f"{name}:0")(x), x)
    noise = Noise(f"{name}:0.5")
    assert not torch.equal(noise(x), noise(x))


@pytest.mark.parametrize("words", WORDS)
def test_noise_enters_the_encoder_alone_and_in_training_alone(words):
    vae, x = linear(words), data()
    vae.train()
    assert not torch.equal(vae.encode(x).mean, vae.encode(x).mean)
    assert torch.equal(poutine.trace(vae.model).get_trace(x).nodes["x"]["value"], x)
    vae.eval()
    plain = vae.encoder.network(x)
    assert torch.equal(vae.encode(x).mean, plain[:, :2])


@pytest.mark.parametrize("words", WORDS)
def test_it_passes_every_law(words):
    vae, x = linear(words), data()
    vae.eval()
    report = check_elbo_bounds(vae.model, vae.guide, x, exact=lambda x: exact(vae, x), num_samples=200)
    assert report.laws["exact"] == report.laws["posterior"] == "held"


def test_noise_in_training_is_reported_like_dropout():
    vae = linear()
    with pytest.raises(BrokenBound, match="dropout in train mode"):
        check_elbo_bounds(vae.model, vae.guide, data(), num_samples=100)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.thin(3)
def test_the_weights_in_training_are_those_of_clean_data(words):
    """E[w] = p(x) for the clean data, whatever the noise."""
    vae, x = linear(words), data()
    vae.train()
    with torch.no_grad():
        vae.encoder.network.head.weight.mul_(0.3)  # near the prior, so that weights are bounded
        draws = [pv.log_weights(vae.model, vae.guide, x, num_samples=100) for _ in range(400)]
        ratio = (torch.cat(draws) - exact(vae, x)).exp().unflatten(0, (400, 100)).mean(1)  # a noise for each 100
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert float(error.max()) < 0.05
    assert bool(((ratio.mean(0) - 1).abs() < 4 * error).all())


def test_denoising_takes_the_noise_off():
    generator = torch.Generator().manual_seed(0)
    line = torch.tensor([1.0, -1.0, 1.0, 0.5, -0.5, 1.0])
    x = torch.randn(512, 1, generator=generator) * line + 0.05 * torch.randn(512, 6, generator=generator)
    torch.manual_seed(0)
    vae = DenoisingVAE((6,), 1, (), likelihood="normal", noise="gaussian:0.6")
    pv.fit(vae, x[:384], epochs=60, batch_size=64, lr=0.02, compile=False, progress=False)
    clean, noisy = x[384:], vae.corrupt(x[384:])
    before, after = (squared_error(found, clean, 1).mean() for found in (noisy, denoise(vae, noisy, 64)))
    # Of six directions the noise keeps the line's alone: at best a sixth of the error is left, and less is shrunk.
    assert float(after) < 0.3 * float(before)
    assert not vae.training


@pytest.mark.parametrize(
    "inductor",
    [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")])],
)
def test_compiled_steps_draw_new_noise(inductor, monkeypatch):
    if not inductor:
        monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)
    x, losses, states = data(64), [], []
    for compile in (False, True):
        vae = linear("masking:0.5")
        svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.elbo("trace"), compile=compile)
        svi.step(x)
        torch.manual_seed(1)
        losses.append([svi.step(x) for _ in range(6)])
        states.append([p.detach().clone() for p in vae.parameters()])
        assert svi.compiled is compile
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    torch.testing.assert_close(states[1], states[0])


def test_a_replayed_graph_draws_new_noise(monkeypatch):
    """With z known exactly, given the noise, a step at rate 0 can differ from another by the noise alone."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)
    torch.manual_seed(0)
    vae = DenoisingVAE((6,), 2, (), likelihood="normal", posterior=_Known(), noise="gaussian:0.5").double()
    x, losses = data(64), {}
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), pv.elbo("trace"), compile=True)
    svi.step(x)
    assert svi.compiled
    for level in (0.5, 0.0):
        vae.noise.level = level
        svi._captured.forget()  # a number in Python is a constant of a graph
        losses[level] = {round(svi.step(x), 6) for _ in range(5)}
    assert len(losses[0.5]) == 5
    assert len(losses[0.0]) == 1


class _Known(nn.Module):
    """A point."""

    num_params = 2

    def forward(self, params: torch.Tensor) -> pyro.distributions.Delta:
        return pyro.distributions.Delta(params).to_event(1)


def test_denoising_averages_over_draws_and_leaves_the_mode():
    torch.manual_seed(0)
    vae, x = DenoisingVAE((6,), 2, (5,)), torch.rand(3, 6)
    assert vae.training
    found = denoise(vae, x, num_samples=2000)
    assert vae.training
    with torch.no_grad():
        draws = mean_image(vae.decode(vae.posterior(vae.encoder.network(x)).sample((2000,))))
    error = draws.std(0) / math.sqrt(1000)
    assert bool(((found - draws.mean(0)).abs() < 5 * error).all())
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        denoise(vae, x, 0)


def test_noise_of_ones_own():
    vae = DenoisingVAE((6,), 2, (5,), noise=nn.Dropout(0.5))
    pyro.set_rng_seed(0)
    assert set(vae.corrupt(torch.ones(4, 6)).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("gauss:0.5", "unknown noise 'gauss'.*did you mean 'gaussian'"),
        ("gaussian", "noise: expected gaussian:LEVEL, such as gaussian:0.3, got 'gaussian'."),
        ("masking:a", "noise: expected masking:LEVEL, such as masking:0.3, got 'masking:a'."),
        ("gaussian:-1", "standard deviation of at least 0, got 'gaussian:-1'"),
        ("gaussian:inf", "got 'gaussian:inf'"),
        ("masking:nan", "a probability from 0 to 1, got 'masking:nan'"),
        ("salt-and-pepper:1.5", "a probability from 0 to 1, got 'salt-and-pepper:1.5'"),
    ],
)
def test_bad_noises_are_refused(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        DenoisingVAE((6,), 2, noise=words)
