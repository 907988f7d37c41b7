from __future__ import annotations

import math

import pyro
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

import pyro_vae as pv
from pyro_vae.inference import OBJECTIVES
from pyro_vae.inference.capture import graph as capture
from pyro_vae.models.linear import LinearVAE
from pyro_vae.testing import check_elbo_bounds


def model(data_shape=(2, 3), latent_dim=2, seed=0, **options) -> LinearVAE:
    torch.manual_seed(seed)
    vae = LinearVAE(data_shape, latent_dim, **options).double()
    with torch.no_grad():
        vae.weight.normal_()
        vae.decoder.head.bias.normal_()
        vae.likelihood.log_scale.fill_(-0.5)
    return vae


def covariance(vae: LinearVAE) -> Tensor:
    return vae.weight @ vae.weight.T + vae.scale**2 * torch.eye(len(vae.weight), dtype=torch.float64)


def data(num: int, dim: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(2, 0.2, dim, dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return (torch.randn(num, dim, generator=generator, dtype=torch.float64) * spread) @ mix + 3


def test_log_px_is_that_of_the_marginal():
    vae, x = model(), torch.randn(4, 7, 2, 3, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(vae.decoder.head.bias, covariance(vae))
    torch.testing.assert_close(vae.log_px(x), marginal.log_prob(x.flatten(-2)), rtol=1e-12, atol=1e-12)


def test_the_posterior_is_the_conditional_of_the_joint():
    vae, x = model(), torch.randn(5, 2, 3, dtype=torch.float64)
    gain = vae.weight.T @ torch.linalg.inv(covariance(vae))  # cov(z, x) cov(x)^-1
    found = vae.exact_posterior(x)
    torch.testing.assert_close(found.mean, (x.flatten(1) - vae.decoder.head.bias) @ gain.T)
    torch.testing.assert_close(found.covariance_matrix[0], torch.eye(2, dtype=torch.float64) - gain @ vae.weight)


def test_log_px_holds_in_single_precision_where_the_noise_is_small():
    vae = model((784,), 10)
    with torch.no_grad():
        vae.likelihood.log_scale.fill_(math.log(1e-3))
    x = vae.sample(20)
    exact = vae.log_px(x).detach()
    rough = vae.float().log_px(x.float()).detach()
    assert float((rough - exact).abs().max()) < 1e-3 * float(exact.abs().mean())


def test_the_closed_form_is_the_maximum():
    x = data(50, 6).unflatten(1, (2, 3))
    vae = model()
    vae.maximize_likelihood(x)
    vae.log_px(x).mean().backward()
    assert all(float(p.grad.abs().max()) < 1e-10 for p in vae.parameters())
    values = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0)).flip(0)
    noise = values[2:].mean()
    maximum = -0.5 * (6 * math.log(2 * math.pi) + values[:2].log().sum() + 4 * noise.log() + 6)  # eq. 5 at eq. 7
    torch.testing.assert_close(vae.log_px(x).mean().detach(), maximum)
    for seed in range(5):
        other = model(seed=seed)
        with torch.no_grad():
            for mine, best in zip(other.parameters(), vae.parameters(), strict=True):
                mine.copy_(best + 0.01 * torch.randn_like(best))
            assert float(other.log_px(x).mean()) < float(maximum)


def test_more_pixels_than_data_give_the_same_maximum():
    x = data(9, 30)
    vae = model((30,), 2)
    vae.maximize_likelihood(x)
    directions = torch.linalg.eigh(torch.cov(x.T, correction=0)).eigenvectors[:, -2:]
    assert float(subspace_angles(vae.weight.detach(), directions).max()) < 1e-7
    vae.log_px(x).mean().backward()
    assert all(float(p.grad.abs().max()) < 1e-9 for p in vae.parameters())


def test_data_without_noise_have_no_maximum():
    flat = torch.randn(20, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="vary in more than 2 directions.*smaller latent_dim"):
        model((6,), 2).maximize_likelihood(flat)


SHARED = "piwae"  # refuses a model and a guide of the same parameters


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in (SHARED, "enum")])
def test_every_draw_of_every_bound_is_log_px(name):
    vae = model()
    x = vae.sample(6)
    torch.testing.assert_close(pv.elbo(name).bound(vae.model, vae.guide, x), vae.log_px(x))


def test_the_gradient_of_one_draw_is_that_of_log_px():
    vae = model()
    x = vae.sample(6)
    exact = torch.autograd.grad(-vae.log_px(x).sum(), list(vae.parameters()))
    loss = pv.elbo("trace").differentiable_loss(vae.model, vae.guide, x)
    for ours, theirs in zip(torch.autograd.grad(loss, list(vae.parameters())), exact, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_common_parameters_are_seen():
    vae = model()
    with pytest.raises(ValueError, match="piwae: expected a model and a guide without common parameters"):
        pv.elbo(SHARED).differentiable_loss(vae.model, vae.guide, vae.sample(3))


@pytest.mark.parametrize("posterior", ["exact", "normal"])
def test_it_passes_every_law(posterior):
    vae = model(posterior=posterior)
    report = check_elbo_bounds(vae.model, vae.guide, vae.sample(12), exact=vae.log_px, num_samples=200)
    assert report.laws["exact"] == report.laws["posterior"] == "held"


def test_evidence_is_exact():
    vae = model()
    x = vae.sample(8)
    found = pv.evidence.importance_sampling(vae.model, vae.guide, x, num_samples=50, seed=0)
    torch.testing.assert_close(found.log_px, vae.log_px(x).detach())
    assert bool(found.reliable.all())


def test_training_ends_at_the_closed_form():
    x = data(64, 5).float()
    best, vae = LinearVAE((5,), 2), LinearVAE((5,), 2)
    best.maximize_likelihood(x)
    vae.center_output(x.mean(0), float(x.std()))
    pv.fit(vae, x, epochs=400, batch_size=64, lr=0.05, lr_schedule="cosine", compile=False, progress=False)
    with torch.no_grad():
        maximum, found = float(best.log_px(x).mean()), float(vae.log_px(x).mean())
    assert maximum - 1e-3 < found < maximum + 1e-5
    assert float(subspace_angles(vae.weight.detach(), best.weight.detach()).max()) < 0.02


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"likelihood": "bernoulli"}, "likelihood: expected 'normal' in a linear model, got 'bernoulli'"),
        ({"decoder": torch.nn.Linear(2, 6)}, "decoder: a linear model takes no decoder"),
        ({"latent_dim": 6}, "latent_dim: expected less than the 6 numbers of a datum, got 6"),
        ({"latent_dim": 0}, "latent_dim: expected at least 1, got 0"),
        ({"posterior": "exactly"}, "unknown posterior 'exactly'"),
    ],
)
def test_bad_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LinearVAE(**{"data_shape": (6,), "latent_dim": 2, **options})


def test_data_of_another_shape_are_refused():
    vae = model()
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 2, 3\), got \(4, 6\)"):
        vae.log_px(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 2, 3\), got \(2, 3\)"):
        vae.maximize_likelihood(torch.zeros(2, 3))


def test_training_compiles(monkeypatch):
    """What checks itself, such as a Cholesky decomposition, is an effect, with which Inductor compiles nothing."""
    graphs = []
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graphs.append(graph) or graph)
    x, losses = data(32, 6).reshape(-1, 2, 3), []
    for compile in (False, True):
        vae = model()
        svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.elbo("trace"), compile=compile)
        losses.append([svi.step(x) for _ in range(3)])
    assert svi.compiled
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    effects = {torch.ops.aten._linalg_check_errors.default, torch.ops.aten._assert_async.msg}
    assert not effects & {node.target for node in graphs[0].graph.nodes}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_compiles_it():
    vae, x = model(), data(32, 6).reshape(-1, 2, 3)
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.elbo("trace"), compile=True)
    exact = -float(vae.log_px(x).sum().detach())
    assert svi.step(x) == pytest.approx(exact, rel=1e-9)
    assert svi.compiled
