from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import elbo
from pyro_vae.distributions import LIKELIHOODS, POSTERIORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_equals_the_cross_entropy(dtype):
    """Value, gradient and second derivative of the fast log mass, up to logits where a naive one fails."""
    logits = torch.tensor([-200.0, -30, -5, -0.1, 0, 0.1, 5, 30, 200], dtype=dtype, requires_grad=True)
    x = (torch.arange(9) % 2).to(dtype)
    ours = LIKELIHOODS["bernoulli"]((9,))(logits).base_dist.log_prob(x)
    reference = dist.Bernoulli(logits=logits).log_prob(x)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1.2e-7 if dtype == torch.float32 else 3e-16)
    first, second = (torch.autograd.grad(v.sum(), logits, create_graph=True)[0] for v in (ours, reference))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(
        torch.autograd.grad(first.square().sum(), logits)[0], torch.autograd.grad(second.square().sum(), logits)[0]
    )


def test_bernoulli_has_a_gradient_in_its_data():
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 5, dtype=torch.float64)
    p = LIKELIHOODS["bernoulli"]((5,))(logits).base_dist
    p._validate_args = False
    torch.testing.assert_close(torch.autograd.grad(p.log_prob(x).sum(), x)[0], logits.sum(0))


def test_bernoulli_refuses_grey_pixels():
    with pytest.raises(
        ValueError,
        match="expected pixels that are 0 or 1.*binarize the pixels, or use likelihood='continuous-bernoulli'",
    ):
        LIKELIHOODS["bernoulli"]((3,))(torch.zeros(3)).log_prob(torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("objective", ["trace", "graph", "enum"])
def test_the_decoder_below_a_discrete_latent_has_the_exact_gradient(name, objective):
    r"""Of :math:`\sum_c q(c) [\log p(x|c) + \log p(c) - \log q(c)]`, the decoder a table of one row for each c."""
    torch.manual_seed(3)
    likelihood = LIKELIHOODS[name]((3,)).double()
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    copies = 1 if objective == "enum" else 4000
    rows, probs = x.repeat(copies, 1), q.repeat(copies, 1)
    enumerated = {"enumerate": "parallel"} if objective == "enum" else None

    def model(rows, probs):
        with pyro.plate("data", len(rows)):
            c = pyro.sample("c", dist.Categorical(torch.full((2,), 0.5, dtype=torch.float64)), infer=enumerated)
            pyro.sample("x", likelihood(w[c]), obs=rows)

    def guide(rows, probs):
        with pyro.plate("data", len(rows)):
            pyro.sample("c", dist.Categorical(probs), infer=enumerated)

    loss = elbo(objective).differentiable_loss(model, guide, rows, probs)
    found = torch.autograd.grad(loss, w)[0] / copies
    exact = torch.autograd.grad(-(q * likelihood(w).log_prob(x[:, None])).sum(), w)[0]
    each = torch.stack([torch.autograd.grad(likelihood(w[c]).log_prob(row), w)[0][c] for c in (0, 1) for row in x])
    spread = each.square().max() * 0.25 * len(x)  # of an indicator, at most 1/4, for each datum
    error = 0.0 if objective == "enum" else 5 * math.sqrt(float(spread) / copies)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=error + 1e-12)


def test_normal_has_one_learned_scale():
    likelihood = LIKELIHOODS["normal"]((2, 2))
    assert [n for n, _ in likelihood.named_parameters()] == ["log_scale"]
    with torch.no_grad():
        likelihood.log_scale.fill_(math.log(0.5))
    p = likelihood(torch.zeros(3, 2, 2))
    exact = 4 * (-math.log(0.5) - 0.5 * math.log(2 * math.pi) - 0.5 * 4)
    torch.testing.assert_close(p.log_prob(torch.ones(3, 2, 2)), torch.full((3,), exact))


def test_diagonal_normal_reads_loc_and_log_scale():
    posterior = POSTERIORS["normal"](2)
    assert posterior.num_params == 4
    q = posterior(torch.tensor([1.0, 2.0, math.log(3.0), math.log(0.1)]))
    torch.testing.assert_close(q.base_dist.loc, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(q.base_dist.scale, torch.tensor([3.0, 0.1]))
    assert q.event_shape == (2,)
