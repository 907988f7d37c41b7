"""Compiled draws of log w against eager ones, over batches that have posteriors of their own."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae import evidence
from pyro_vae.inference.capture import graph as capture
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from pyro_vae.system import compiler
from tests.inference.capture.test_graph import PROGRAMS
from tests.oracles import LinearGaussian

X = torch.rand(15, 4, generator=torch.Generator().manual_seed(1)).round()
NAMES = ("vae", "normal likelihood", "continuous", "two layers", "bernoulli", "gamma", "subsampled", "weighted")


@pytest.fixture
def uncompiled(monkeypatch):
    """Capture, and run the graph without Inductor."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)


def estimates(model, guide, compile, parts=(6, 6, 3), num_samples=20, rows=30):
    """log p(x) of three batches, the last a smaller one."""
    torch.manual_seed(2)
    found = [
        evidence.importance_sampling(model, guide, x, num_samples=num_samples, chunk_rows=rows, compile=compile)
        for x in X.split(parts)
    ]
    return torch.cat([f.log_px for f in found]), torch.cat([f.pareto_k for f in found])


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_draws_as_eagerly(name):
    model, guide = PROGRAMS[name]()
    if name in ("vae", "normal likelihood", "continuous", "weighted"):
        pyro.poutine.unwrap(model).__self__.eval()
    guide(X)  # parameters are made before either draws
    captured = CapturedDraws()
    parts = (5, 5, 5) if name == "subsampled" else (6, 6, 3)
    ours, theirs = (estimates(model, guide, compile, parts) for compile in (captured, False))
    assert captured.reason is None
    assert 1 <= captured.captures <= 4
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_compiled_by_inductor():
    model, guide = PROGRAMS["vae"]()
    captured = CapturedDraws()
    ours, theirs = (estimates(model, guide, compile) for compile in (captured, False))
    assert captured.captures >= 2
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


def test_a_generator_of_ones_own_is_refused():
    """The graph would hold it, and the oracle's guide draws from one."""
    oracle = LinearGaussian()
    with pytest.warns(UserWarning, match="made eagerly: the program reads a Generator, which is not a tensor"):
        found = evidence.importance_sampling(oracle.model, oracle.guide(), oracle.draw(8), chunk_rows=200, compile=True)
    assert found.num_samples == 5000


@pytest.mark.usefixtures("uncompiled")
def test_posteriors_without_a_closed_form_of_parameters():
    """Full covariance, mixtures and transformed draws: their tensors lie deeper."""

    class Deep(nn.Module):
        num_params = 4

        def forward(self, params):
            loc, scale = params.chunk(2, -1)
            base = dist.Normal(loc, scale.exp()).to_event(1)
            return dist.TransformedDistribution(
                base, dist.transforms.AffineTransform(loc, 2 + loc.sigmoid(), event_dim=1)
            )

    torch.manual_seed(0)
    vae = pv.VAE((4,), 2, (5,), posterior=Deep()).eval()
    captured = CapturedDraws()
    ours, theirs = estimates(vae.model, vae.guide, captured), estimates(vae.model, vae.guide, False)
    assert captured.captures >= 2
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_captured_is_drawn_eagerly():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if z.sum().item() > 1e9:
                z = z + 1
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((*z.shape, 4)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.5))

    captured = CapturedDraws()
    with pytest.warns(UserWarning, match=r"draws cannot be compiled and are made eagerly: .*(trac|[.]item)"):
        ours = estimates(model, guide, captured)
    torch.testing.assert_close(ours, estimates(model, guide, False))


@pytest.mark.usefixtures("uncompiled")
def test_a_long_evaluation_compiles(monkeypatch):
    """By its size, and with the same figures."""
    torch.manual_seed(0)
    vae = pv.VAE((4,), 2, (5,)).eval()
    asked = []

    def repays(flops, device):
        asked.append(flops)
        return len(asked) == 2

    monkeypatch.setattr(compiler, "worth_compiling", repays)
    found = [estimate(vae, X, Estimation(num_samples=1000), seed=0).log_px for _ in range(2)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert asked[0] == 2 * sum(p.numel() for p in vae.parameters()) * 15 * 1000


def test_what_repays():
    assert not compiler.worth_compiling(1e9, torch.device("cpu"))
    assert compiler.worth_compiling(1e14, torch.device("cpu"))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["vae", "two layers"])
def test_noise_is_an_input_of_the_graph(name):
    """With a seed the size of chunks, and whether they are captured, change rounding only; no generator is drawn from."""
    model, guide = PROGRAMS[name]()
    guide(X)
    if name == "vae":
        pyro.poutine.unwrap(model).__self__.eval()
    options = {"num_samples": 120, "seed": 7, "data_ids": range(20, 35)}
    eager = evidence.importance_sampling(model, guide, X, **options)
    captured = CapturedDraws()
    for rows in (15, 30, 45, 600):
        found = evidence.importance_sampling(model, guide, X, chunk_rows=rows, compile=captured, **options)
        torch.testing.assert_close(found.log_px, eager.log_px, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.smoothed, eager.smoothed, rtol=1e-4, atol=1e-4)
    assert captured.captures == 4
    assert captured.reason is None


@pytest.mark.usefixtures("uncompiled")
def test_a_mask_of_one_batch_is_not_held_for_the_next():
    """The guide's mask depends on the batch, and is no parameter of its distribution."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((*z.shape, 4)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.5))

    batches = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))
    options = {"num_samples": 40, "chunk_rows": 60, "seed": 3}
    captured = CapturedDraws()
    with pytest.warns(UserWarning, match="they depend on more of the batch than"):
        ours = [evidence.importance_sampling(model, guide, x, compile=captured, **options).log_px for x in batches]
    eager = [evidence.importance_sampling(model, guide, x, **options).log_px for x in batches]
    torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)
    assert captured.reason is not None
