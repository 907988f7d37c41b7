from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormalMessenger
from torch import nn

from pyro_vae import VAE, log_weights
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.handlers import scale_kl, scale_kl_pair
from pyro_vae.inference.program.traces import prior_guide
from pyro_vae.inference.weights.log_weights import ProposalDraws
from tests.oracles import LinearGaussian, mixture, within

ORACLE = LinearGaussian()


@pytest.mark.parametrize("num_samples", [1, 3, 50])
@pytest.mark.parametrize("vectorize", [True, False])
def test_exact_posterior_gives_log_px_on_every_draw(num_samples, vectorize):
    x = ORACLE.draw(7)
    log_w = log_weights(ORACLE.model, ORACLE.guide(), x, num_samples=num_samples, vectorize=vectorize)
    assert log_w.shape == (num_samples, 7)
    torch.testing.assert_close(log_w, ORACLE.log_px(x).expand(num_samples, 7), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.5), (0.0, 0.7), (0.8, 1.0), (-0.5, 1.3)])
def test_wrong_guide_gap_is_the_kl_to_the_posterior(shift, stretch):
    x = ORACLE.draw(6)
    log_w = log_weights(ORACLE.model, ORACLE.guide(shift, stretch), x, num_samples=20_000)
    error = log_w.std(0) / math.sqrt(20_000)
    assert within(log_w.mean(0), ORACLE.log_px(x) - ORACLE.kl(shift, stretch), error)


def test_terms_are_rate_and_distortion():
    x = ORACLE.draw(4)
    terms = ProposalDraws(ORACLE.model, ORACLE.guide(0.4, 1.2), (x,), {})(20_000)
    for part, exact in ((terms.log_ratio, ORACLE.rate), (terms.log_likelihood, ORACLE.distortion)):
        assert within(-part.mean(0), exact(x, 0.4, 1.2), part.std(0) / math.sqrt(20_000))


def test_discrete_latent_with_exact_guide():
    oracle, x = mixture(), torch.linspace(-3, 3, 5, dtype=torch.float64)
    log_w = log_weights(oracle.model, oracle.exact_guide, x, num_samples=20)
    torch.testing.assert_close(log_w, oracle.log_px(x).expand(20, 5))


def test_prior_as_guide_gives_the_likelihood():
    oracle, x = mixture(), torch.linspace(-3, 3, 5, dtype=torch.float64)
    log_w = log_weights(oracle.model, prior_guide(oracle.model), x, num_samples=4000)
    w = log_w.exp()
    assert within(w.mean(0), oracle.log_px(x).exp(), w.std(0) / math.sqrt(4000))


def test_encoder_runs_once_and_decoder_once_a_call():
    calls = {"encoder": 0, "decoder": 0}
    vae = VAE((6,), 3, (8,))
    vae.encoder.register_forward_hook(lambda *_: calls.__setitem__("encoder", calls["encoder"] + 1))
    rows = []
    vae.decoder.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[:-1].numel()))
    for num_samples in (1, 10, 101):
        calls["encoder"] = 0
        rows.clear()
        log_weights(vae.model, vae.guide, torch.ones(4, 6), num_samples=num_samples)
        assert calls["encoder"] == 1
        assert rows == [4, 4 * num_samples, 4]  # the first trace, all draws at once, and one draw alone to compare


def test_a_masked_observation_counts_nothing():
    x = ORACLE.draw(4)
    mask = torch.tensor([True, False, True, False])
    masked_model = poutine.mask(ORACLE.model, mask=mask)
    masked_guide = poutine.mask(ORACLE.guide(), mask=mask)
    log_w = log_weights(masked_model, masked_guide, x, num_samples=3)
    torch.testing.assert_close(log_w, torch.where(mask, ORACLE.log_px(x), 0.0).expand(3, 4))


def _pixelwise(mask):
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1, dtype=x.dtype), 1.0))
            with pyro.plate("pixels", x.shape[1], dim=-1), poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1, dtype=x.dtype), 1.0))

    return model, guide


def test_inner_plates_are_summed_and_masks_are_per_pixel():
    x = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.rand(3, 4) < 0.5
    model, guide = _pixelwise(mask)
    pyro.set_rng_seed(1)
    log_w = log_weights(model, guide, x, num_samples=5)
    # The masked pixels may hold anything.
    changed = torch.where(mask, x, 99.0)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(log_weights(model, guide, changed, num_samples=5), log_w)
    full = log_weights(*_pixelwise(torch.ones(3, 4, dtype=torch.bool)), x, num_samples=5)
    assert not torch.allclose(full, log_w)


@pytest.mark.parametrize("size", [3, 12])
def test_plate_scale_never_enters(size):
    x = ORACLE.draw(12)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=size) as index:
            zero = torch.zeros(2, dtype=torch.float64)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            likelihood = dist.Normal(z @ ORACLE.weight.T + ORACLE.bias, ORACLE.scale).to_event(1)
            pyro.sample("x", likelihood, obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=size) as index:
            mean, factor = ORACLE.posterior(x[index])
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=factor))

    draws = ProposalDraws(model, guide, (x,), {})
    assert draws.data_plate.size == size
    first, second = draws(2).log_w, draws(1).log_w
    torch.testing.assert_close(first[:1], second)  # the same subsample at every call
    exact = ORACLE.log_px(x)
    assert all(bool((value - exact).abs().min() < 1e-9) for value in first[0])


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0, torch.tensor(2.0), torch.linspace(0, 3, 5, dtype=torch.float64)])
def test_beta_never_enters(beta):
    x = ORACLE.draw(5)
    pair = scale_kl_pair(ORACLE.model, ORACLE.guide(), beta)
    torch.testing.assert_close(log_weights(*pair, x, num_samples=2), ORACLE.log_px(x).expand(2, 5))


def test_beta_on_one_side_is_refused():
    with pytest.raises(ValueError, match=r"site 'z'.*same KL weight in model and guide.*scale_kl_pair"):
        log_weights(scale_kl(ORACLE.model, 2.0), ORACLE.guide(), ORACLE.draw(3))
    with pytest.raises(ValueError, match="same KL weight in model and guide"):
        log_weights(ORACLE.model, scale_kl(ORACLE.guide(), 2.0), ORACLE.draw(3))


def test_another_scale_is_refused_unless_ignored():
    x = ORACLE.draw(3)
    model, guide = (poutine.scale(fn, scale=0.1) for fn in (ORACLE.model, ORACLE.guide()))
    with pytest.raises(ValueError, match="outer_scale='ignore'"):
        log_weights(model, guide, x)
    torch.testing.assert_close(log_weights(model, guide, x, outer_scale="ignore")[0], ORACLE.log_px(x))


def test_auxiliary_loss_sites_are_left_out():
    x = ORACLE.draw(3)

    def model(x):
        ORACLE.model(x)
        with pyro.plate("classifier", len(x)):
            pyro.sample("y", dist.Bernoulli(0.3), obs=torch.ones(3), infer={"auxiliary_loss": True})

    torch.testing.assert_close(log_weights(model, ORACLE.guide(), x)[0], ORACLE.log_px(x))


def test_two_latent_layers_in_pyros_own_style():
    # a ~ N(0,1), b ~ N(a,1), x ~ N(b,1): p(x) = N(x; 0, 3); posterior a|x ~ N(x/3, 2/3), b|a,x ~ N((a+x)/2, 1/2).
    def model(batch):
        with pyro.plate("items", len(batch)):
            a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("pixels", dist.Normal(b, 1.0), obs=batch)

    def guide(batch):
        with pyro.plate("items", len(batch)):
            a = pyro.sample("a", dist.Normal(batch / 3, math.sqrt(2 / 3)))
            pyro.sample("b", dist.Normal((a + batch) / 2, math.sqrt(1 / 2)))

    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(3)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, x, num_samples=40), exact.expand(40, 6))


def test_gradients_reach_the_parameters():
    vae = VAE((6,), 2, (5,))
    log_weights(vae.model, vae.guide, torch.ones(3, 6), num_samples=4).sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in vae.parameters())


def test_a_program_that_cannot_be_batched_is_drawn_one_by_one():
    class Fixed(nn.Module):
        def forward(self, z):
            if z.dim() != 2:
                raise ValueError("one batch dimension only")
            return z.sum(-1)

    net = Fixed()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0), obs=x)

    x = torch.zeros(3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="outer plate"):
        log_w = log_weights(model, prior_guide(model), x, num_samples=500)
    w = log_w.exp()
    exact = dist.Normal(0.0, math.sqrt(3.0)).log_prob(torch.zeros(3)).exp()
    assert w.shape == (500, 3)
    assert within(w.mean(0), exact, w.std(0) / math.sqrt(500))
    assert len(log_w[:, 0].unique()) == 500


def test_a_program_that_indexes_from_the_left_is_found_out():
    """z[:, 0] runs inside an outer plate without an error, and gives all data the z of the first."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] / 2, math.sqrt(0.5)).to_event(1))

    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="a draw has different log weights inside the plate"):
        log_w = log_weights(model, guide, x, num_samples=6)
    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(log_w, exact.expand(6, 5))


def test_the_first_trace_is_validated():
    vae = VAE((4,), 2, (5,))
    with pytest.raises(ValueError, match="expected pixels that are 0 or 1"):
        log_weights(vae.model, vae.guide, torch.rand(6, 4))


def test_guide_messengers_are_refused():
    guide = AutoNormalMessenger(ORACLE.model)
    with pytest.raises(ValueError, match="got the messenger AutoNormalMessenger"):
        log_weights(ORACLE.model, guide, ORACLE.draw(3))


def _no_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _no_data(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _global_latent(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def _loop(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])


def _two_plates(x):
    with pyro.plate("outer", 1, dim=-2), pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (_no_plate, "no pyro.plate encloses every observed site"),
        (_no_data, "expected an observed site, got none"),
        (_global_latent, "latent site 'scale': lies outside the data plate"),
        (_loop, "expected a vectorized plate, got a loop"),
        (_two_plates, "choose the data plate with plate="),
    ],
)
def test_programs_without_weights_per_datum_are_refused(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        log_weights(model, prior_guide(model), torch.zeros(3))


def test_the_data_plate_can_be_named():
    log_w = log_weights(_two_plates, prior_guide(_two_plates), torch.zeros(3), num_samples=2, plate="data")
    assert log_w.shape == (2, 3)
    assert len(log_w.unique()) == 6
    with pytest.raises(ValueError, match="got 'nowhere'"):
        log_weights(_two_plates, prior_guide(_two_plates), torch.zeros(3), plate="nowhere")


def test_model_and_guide_must_have_the_same_latent_sites():
    x = torch.zeros(3)

    def empty(x):
        pass

    def more(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("extra", dist.Normal(0.0, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="'z': missing from the guide"):
        log_weights(model, empty, x)
    with pytest.raises(ValueError, match="'extra': missing from the model"):
        log_weights(model, more, x)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        log_weights(model, model, x, num_samples=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_rows_and_batches_are_independent(likelihood):
    vae = VAE((6,), 2, (5,), likelihood=likelihood).double()
    x = (torch.rand(8, 6, dtype=torch.float64) < 0.5).double()

    def weights(part):
        return log_weights(vae.model, _mean_guide(vae), part)[0]

    whole = weights(x)
    torch.testing.assert_close(torch.cat([weights(x[:3]), weights(x[3:])]), whole)
    torch.testing.assert_close(weights(x.flip(0)).flip(0), whole)
    changed = x.clone()
    changed[2] = 1 - changed[2]
    moved = (weights(changed) - whole).abs() > 1e-9
    assert moved.nonzero().flatten().tolist() == [2]


def _mean_guide(vae):
    """The guide of a VAE at its mean: no randomness, so that data can be compared one by one."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(vae.encode(x).mean, event_dim=1))

    return guide
