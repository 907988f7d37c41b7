"""Every model with a prior that is not N(0, I): its bounds are of that prior, or it refuses."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae.evidence import aggregate_posterior, importance_sampling
from pyro_vae.inference.kl.total_correlation import TotalCorrelation
from pyro_vae.models import MODELS
from pyro_vae.models.base import mean_image
from pyro_vae.models.registry import constructor_parameters, make
from pyro_vae.report.figures.images import plane
from tests.oracles import within

X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, -1, -1])
IMAGES = X[:, :, None].expand(4, 3, 3).reshape(4, 1, 3, 3)
LEARNING = [name for name, cls in MODELS.items() if "prior" in constructor_parameters(cls) and name != "linear"]


def make_vae(**options) -> pv.VAE:
    """A VAE whose prior has another mean and scale than N(0, I); its guide is wider, so that weights are bounded."""
    torch.manual_seed(0)
    vae = pv.VAE((3,), options.pop("latent_dim", 1), (4,), prior="diagonal-normal", **options).double()
    with torch.no_grad():
        vae.prior.loc.copy_(torch.linspace(0.8, -0.5, len(vae.prior.loc)))
        vae.prior.log_scale.copy_(torch.linspace(-1.2, -0.3, len(vae.prior.loc)))
    return vae


@pytest.mark.parametrize("name", LEARNING)
def test_a_gradient_reaches_the_prior_of_every_model_and_training_moves_it(name):
    torch.manual_seed(0)
    shape = (1, 3, 3) if name == "inpainting" else (3,)
    model = make(
        name, {"data_shape": shape, "latent_dim": 2, "hidden": (4,), "num_classes": 2, "prior": "diagonal-normal"}
    )
    x = (IMAGES if name == "inpainting" else X).float()
    y = Y.clamp(min=0) if name == "conditional" else Y
    data = (x, y) if "y" in model.takes else x
    pv.fit(model, data, epochs=3, batch_size=4, lr=0.01, compile=False, progress=False)
    for parameter in model.prior.parameters():
        assert bool((parameter != 0).all())


@torch.no_grad()
def test_log_px_is_of_the_learned_prior():
    """By quadrature over z of p(z) p(x|z), and by importance sampling from the guide."""
    vae = make_vae()
    loc, scale = vae.prior.loc, vae.prior.log_scale.exp()
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    log_joint = dist.Normal(loc, scale).to_event(1).log_prob(grid)[:, None] + vae.decode(grid[:, None]).log_prob(X)
    exact = log_joint.logsumexp(0) + math.log(24 / 20_000)
    found = importance_sampling(vae.model, vae.guide, X, num_samples=20_000, seed=1)
    assert within(found.log_px, exact, found.std_error, 5)
    assert bool((found.std_error < 0.05).all())


@torch.no_grad()
def test_the_rate_and_its_parts_are_from_the_learned_prior():
    vae = make_vae(latent_dim=2)
    q, p = vae.encode(X), vae.prior()
    rate = float(kl_divergence(q, p).mean())
    assert abs(rate - float(kl_divergence(q, dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)).mean())) > 0.1
    found = aggregate_posterior(vae.model, vae.guide, X, num_samples=20_000, seed=0)
    assert abs(found.rate - rate) < 5 * found.rate_error
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate)
    assert found.total_correlation + found.dimension_wise_kl == pytest.approx(found.marginal_kl)
    terms = pv.elbo("mean-field").terms(vae.model, vae.guide, X)
    assert float(terms.rate) / len(X) == pytest.approx(rate)


def test_the_total_correlation_at_weights_of_one_is_the_elbo_of_the_learned_prior():
    vae = make_vae(latent_dim=2)
    losses = []
    for objective in (pv.elbo("mean-field"), TotalCorrelation(pv.elbo("mean-field"), 1.0)):
        torch.manual_seed(3)
        vae.zero_grad()
        loss = objective.terms(vae.model, vae.guide, X).loss
        loss.backward()
        losses.append((float(loss.detach()), vae.prior.loc.grad.clone()))
    assert losses[0][0] == pytest.approx(losses[1][0])
    torch.testing.assert_close(losses[0][1], losses[1][1])


def test_samples_are_from_the_learned_prior():
    vae = make_vae()
    with torch.no_grad():
        vae.prior.loc.fill_(30.0)
        vae.prior.log_scale.fill_(-3.0)
    torch.manual_seed(0)
    found = vae.sample(2000).mean(0)
    torch.testing.assert_close(
        found, vae.decode(torch.tensor([30.0]).double()).base_dist.mean.detach(), atol=0.06, rtol=0
    )


def test_models_with_another_prior_of_their_own_refuse_it():
    with pytest.raises(
        ValueError, match="^prior: expected 'normal' in a linear model, got 'diagonal-normal'; use 'normal'"
    ):
        make("linear", {"data_shape": (3,), "latent_dim": 1, "prior": "diagonal-normal"})
    assert "prior" not in constructor_parameters(MODELS["autoencoder"])


def test_a_prior_learns_of_its_model_once():
    class Curious(type(make_vae().prior)):
        def connect(self, data_shape, encode):
            self.seen = (data_shape, encode)

    vae = pv.VAE((3,), 2, (4,), prior=Curious(2))
    shape, encode = vae.prior.seen
    assert shape == (3,)
    assert torch.equal(encode(X.float()).mean, vae.encode(X.float()).mean)


@torch.no_grad()
def test_the_decoded_plane_is_at_quantiles_of_the_learned_prior():
    torch.manual_seed(0)
    vae = pv.VAE((1, 8, 8), 2, (4,), prior="diagonal-normal").eval()
    vae.prior.loc.copy_(torch.tensor([1.0, -2.0]))
    vae.prior.log_scale.copy_(torch.tensor([0.5, 2.0]).log())
    axes = plane(vae).axes[0]
    ticks = [
        [float(t.get_text().replace("−", "-")) for t in labels]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels())
    ]
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20) + 0.5) / 20)
    for found, loc, scale in zip(ticks, (1.0, -2.0), (0.5, 2.0), strict=True):
        assert found == pytest.approx((loc + scale * quantiles).tolist(), abs=0.006)
    # Column 17 and row 3 from below; imshow draws the first row at the top.
    tile = torch.as_tensor(axes.images[0].get_array()[8 * (19 - 3) : 8 * (20 - 3), 8 * 17 : 8 * 18]).float()
    z = torch.stack([1.0 + 0.5 * quantiles[17], -2.0 + 2.0 * quantiles[3]])
    torch.testing.assert_close(tile, mean_image(vae.decode(z))[0])
    assert "mean and scale of p(z)" in axes.get_title()


def prior_gradient(objective: str, seed: int, **options) -> torch.Tensor:
    """The gradient of a loss in the prior's parameters, nats per datum."""
    vae, x = make_vae(), X.repeat(1000, 1)
    torch.manual_seed(seed)
    pv.elbo(objective, **options).terms(vae.model, vae.guide, x).loss.backward()
    return torch.cat([vae.prior.loc.grad, vae.prior.log_scale.grad]) / len(x)


def test_the_prior_has_the_gradient_of_a_model_parameter_under_every_bound():
    """Sampled ELBOs agree with the closed form; bounds of the same weights give the same gradient, draw by draw."""
    exact = prior_gradient("mean-field", 0)
    for objective in ("trace", "stl"):
        found = torch.stack([prior_gradient(objective, seed) for seed in range(8)])
        assert within(found.mean(0), exact, found.std(0) / math.sqrt(8), 6)
    weighted = prior_gradient("iwae", 1, num_particles=5)
    for objective in ("dreg", "vimco", "rws"):
        torch.testing.assert_close(prior_gradient(objective, 1, num_particles=5), weighted)
