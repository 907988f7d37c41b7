"""The aggregate posterior of a finite data set, against quadrature on a grid."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE
from pyro_vae.evidence.criticism.aggregate_posterior import aggregate, aggregate_posterior
from tests.oracles import LinearGaussian, within

X = torch.tensor([-2.0, -0.7, 0.1, 0.4, 1.9], dtype=torch.float64)
LOCS = torch.tensor([[-1.5, -1.0], [-0.5, 0.0], [0.2, 0.3], [0.9, 0.4], [1.4, 1.6]], dtype=torch.float64)
SCALES = torch.tensor([[0.4, 0.9], [0.5, 0.6], [0.3, 1.0], [0.7, 0.5], [0.6, 0.8]], dtype=torch.float64)
TILT = torch.tensor([[0.0, 0.0], [0.4, 0.0]], dtype=torch.float64)
PRIOR = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
CODES = {
    "diagonal": dist.Normal(LOCS, SCALES).to_event(1),
    "full": dist.MultivariateNormal(LOCS, scale_tril=SCALES.diag_embed() + TILT),
    "low rank": dist.LowRankMultivariateNormal(LOCS, LOCS[..., None] * 0.3, SCALES.square()),
}


def on_grid(q, p):
    """I, KL(q(z) || p), total correlation and dimension-wise KL of 2 units, by sums over a grid."""
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    cell = float(axis[1] - axis[0])
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    each = q.log_prob(z[:, :, None])  # (G, G, N)
    log_q = each.logsumexp(-1) - math.log(each.shape[-1])
    mean = log_q.exp() * cell**2
    assert float(mean.sum()) == pytest.approx(1.0, abs=1e-6)
    given = (each.exp() * each).sum((0, 1)) * cell**2
    apart = [mean.sum(1 - j) / cell for j in (0, 1)]
    log_apart = apart[0].log()[:, None] + apart[1].log()
    standard = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(axis)
    per_unit = torch.stack([(a * (a.log() - standard)).sum() * cell for a in apart])
    return {
        "mutual_information": float(given.mean() - (mean * log_q).sum()),
        "marginal_kl": float((mean * (log_q - p.log_prob(z))).sum()),
        "total_correlation": float((mean * (log_q - log_apart)).sum()),
        "dimension_wise_kl": float(per_unit.sum()),
        "per_unit": per_unit,
    }


@pytest.mark.parametrize("codes", CODES)
def test_two_units_against_sums_on_a_grid(codes):
    found, exact = aggregate(CODES[codes], PRIOR, num_samples=20_000), on_grid(CODES[codes], PRIOR)
    for name in ("mutual_information", "marginal_kl", "total_correlation", "dimension_wise_kl"):
        assert within(getattr(found, name), exact[name], getattr(found, f"{name}_error")), name
    error = 3 * found.dimension_wise_kl_error
    assert float((found.kl_per_unit - exact["per_unit"]).abs().max()) < 4 * error
    kl = torch.distributions.kl_divergence(
        dist.MultivariateNormal(CODES[codes].mean, torch.stack([covariance(c) for c in rows(CODES[codes])])),
        dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)),
    )
    assert within(found.rate, kl.mean(), found.rate_error)


def rows(q):
    return [(q, n) for n in range(5)]


def covariance(row):
    q, n = row
    return q.covariance_matrix[n] if hasattr(q, "covariance_matrix") else q.variance[n].diag()


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("num_samples", [2, 3, 5, 12])
def test_the_identities_hold_for_any_draws(codes, num_samples):
    found = aggregate(CODES[codes], PRIOR, num_samples=num_samples)
    assert found.rate == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-10)
    assert found.marginal_kl == pytest.approx(found.total_correlation + found.dimension_wise_kl, abs=1e-10)
    assert float(found.kl_per_unit.sum()) == pytest.approx(found.dimension_wise_kl, abs=1e-10)
    assert found.mutual_information <= found.ceiling + 1e-10
    assert (found.num_samples, found.num_data) == (num_samples, 5)


def scalar_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def scalar_guide(x):
    """A linear-Gaussian encoder."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.6 * x, 0.5))


def test_a_linear_encoder_against_quadrature():
    axis = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    each = dist.Normal(0.6 * X, 0.5).log_prob(axis[:, None])
    log_q = each.logsumexp(1) - math.log(5)
    cell = float(axis[1] - axis[0])
    kl = float((log_q.exp() * (log_q - dist.Normal(0.0, 1.0).log_prob(axis))).sum() * cell)
    entropy = -float((log_q.exp() * log_q).sum() * cell)
    information = entropy - 0.5 * math.log(2 * math.pi * math.e * 0.25)
    found = aggregate_posterior(scalar_model, scalar_guide, X, num_samples=20_000)
    assert within(found.mutual_information, information, found.mutual_information_error)
    assert within(found.marginal_kl, kl, found.marginal_kl_error)
    assert found.total_correlation == 0.0
    assert found.dimension_wise_kl == pytest.approx(found.marginal_kl)
    rate = 0.5 * (0.25 + (0.6 * X).square().mean() - 1) - math.log(0.5)
    assert within(found.rate, rate, found.rate_error)


def test_many_data_of_a_linear_gaussian_model_approach_the_population():
    """With the exact posterior q(z) = p(z): the marginal KL goes to 0 and I to that of the channel."""
    oracle = LinearGaussian(data_dim=2, latent_dim=1, scale=1.5)
    found = aggregate_posterior(oracle.model, oracle.guide(), oracle.draw(1500), num_samples=1500, seed=0)
    exact = 0.5 * math.log(1 + float(oracle.weight.square().sum()) / oracle.scale**2)
    # The sample of 1,500 data has a rate of its own, whose scatter the errors count.
    assert within(found.mutual_information, exact, found.mutual_information_error)
    assert abs(found.marginal_kl) < 4 * found.marginal_kl_error + 0.005
    assert found.marginal_kl < 0.02 * found.mutual_information + 0.005


def test_codes_far_apart_reach_the_ceiling_and_equal_ones_say_nothing():
    far = dist.Normal(torch.arange(50.0, dtype=torch.float64)[:, None] * 100, torch.ones(50, 1).double()).to_event(1)
    prior = dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1)
    found = aggregate(far, prior, num_samples=50)
    assert found.mutual_information == pytest.approx(math.log(50), abs=1e-9)
    assert found.ceiling == pytest.approx(math.log(50))
    assert "of at most log 50 = 3.91: the codes of these data do not overlap" in found.sentence
    same = dist.Normal(torch.full((50, 1), 0.5).double(), torch.full((50, 1), 0.8).double()).to_event(1)
    found = aggregate(same, prior, num_samples=20_000)
    assert found.mutual_information == pytest.approx(0.0, abs=1e-12)
    kl = 0.5 * (0.64 + 0.25 - 1) - math.log(0.8)
    assert within(found.marginal_kl, kl, found.marginal_kl_error)
    assert found.sentence.endswith("of at most log 50 = 3.91.")


def test_errors_are_those_of_repetitions():
    """One datum, where draws are independent: standardized errors have mean square one."""
    q = dist.Normal(LOCS[:1], SCALES[:1]).to_event(1)
    exact = float(torch.distributions.kl_divergence(q, PRIOR))
    squares = []
    for seed in range(150):
        pyro.set_rng_seed(seed)
        found = aggregate(q, PRIOR, num_samples=200)
        squares.append(((found.marginal_kl - exact) / found.marginal_kl_error) ** 2)
    squares = torch.tensor(squares)
    assert within(squares.mean(), 1.0, squares.std() / math.sqrt(150))


def test_chunks_change_nothing_and_the_seed_everything():
    oracle = LinearGaussian()
    x = oracle.draw(20)
    values = [
        aggregate_posterior(oracle.model, oracle.guide(), x, num_samples=35, seed=3, max_elements=size)
        for size in (1, 333, 10**6)
    ]
    for other in values[1:]:
        assert other.mutual_information == pytest.approx(values[0].mutual_information, abs=1e-12)
        assert other.total_correlation == pytest.approx(values[0].total_correlation, abs=1e-12)
    moved = aggregate_posterior(oracle.model, oracle.guide(), x, num_samples=35, seed=4)
    assert moved.mutual_information != values[0].mutual_information


def test_every_datum_gives_as_many_draws_up_to_one():
    """Uniform codes far apart: a draw's term is known to 0.001 by whose it is, and the mean over all data is exact."""
    locs = 100 * torch.arange(7.0, dtype=torch.float64)[:, None]
    q = dist.Uniform(locs, locs + 1, validate_args=False).to_event(1)
    prior = dist.Normal(torch.zeros(1, dtype=torch.float64), 1000.0).to_event(1)
    terms = -prior.log_prob(locs)
    for num_samples in (7, 14):
        assert aggregate(q, prior, num_samples).rate == pytest.approx(float(terms.mean()), abs=1e-3)
    # Of 3 draws each is another's.
    rates = [aggregate(q, prior, 3).rate for _ in range(50)]
    threes = torch.combinations(terms, 3).mean(1)
    gaps = (torch.tensor(rates, dtype=torch.float64)[:, None] - threes).abs().min(1).values
    assert float(gaps.max()) < 1e-3
    assert max(rates) - min(rates) > 0.05


def test_a_vae_and_a_prior_whose_units_depend_on_each_other():
    vae = VAE((6,), 3, (5,)).double()
    x = (torch.rand(30, 6, dtype=torch.float64) < 0.5).double()
    found = aggregate_posterior(vae.model, vae.guide, x, num_samples=500)
    assert found.kl_per_unit.shape == (3,)
    kl = torch.distributions.kl_divergence(vae.encode(x), vae.prior()).mean()
    assert within(found.rate, kl.detach(), found.rate_error)
    bent = dist.MultivariateNormal(torch.zeros(2).double(), scale_tril=torch.eye(2).double() + TILT)
    found = aggregate(CODES["diagonal"], bent, num_samples=100)
    assert found.dimension_wise_kl is None
    assert found.kl_per_unit is None
    assert found.total_correlation is not None
    flow = dist.TransformedDistribution(CODES["full"], [])
    found = aggregate(flow, PRIOR, num_samples=100)
    assert (found.total_correlation, found.dimension_wise_kl) == (None, None)
    assert found.rate == pytest.approx(found.mutual_information + found.marginal_kl)


def _two_sites(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("u", dist.Normal(0.0, 1.0))


def _point(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x))


def _conditional(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _two_sites_model(x):
    with pyro.plate("data", len(x)):
        z, u = pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + u, 1.0), obs=x)


def _inner(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _inner_model(x):
    with pyro.plate("data", len(x), dim=-2):
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=x[:, None])


@pytest.mark.parametrize(
    ("model", "guide", "sentence"),
    [
        (_two_sites_model, _two_sites, "expected one latent site, got 2"),
        (scalar_model, _point, "q: expected codes with a density"),
        (_conditional, scalar_guide, "expected the same prior for all data"),
        (_inner_model, _inner, "latent site 'z': expected batch shape \\(\\d+,\\), the data plate alone"),
    ],
)
def test_what_has_no_aggregate_posterior_is_refused(model, guide, sentence):
    with pytest.raises(ValueError, match=sentence):
        aggregate_posterior(model, guide, X)


def test_one_draw_has_no_error():
    with pytest.raises(ValueError, match="num_samples: expected at least 2, got 1"):
        aggregate_posterior(scalar_model, scalar_guide, X, num_samples=1)
