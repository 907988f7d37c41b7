"""Importance sampling against closed forms: coverage, flagged tails, adaptive draws, noise by datum."""

from __future__ import annotations

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence import Estimate, importance_sampling, prior_sampling
from pyro_vae.evidence.importance import adaptive
from tests.oracles import LinearGaussian

SEEDS, DATA, DRAWS = 200, 5, 500
GUIDES = {"exact": (0.0, 1.0), "wide": (0.0, 2.0), "narrow": (0.0, 0.5), "shifted": (1.0, 1.0)}
CELLS = [(name, dim) for name in GUIDES for dim in (1, 2, 5, 10)]


def estimates(name: str, dim: int, num: int = DRAWS, seeds: int = SEEDS) -> tuple[Estimate, torch.Tensor]:
    """Each of five data estimated 200 times, from streams of their own; and the errors, shape (200, 5)."""
    oracle = LinearGaussian(data_dim=dim + 2, latent_dim=dim)
    x = oracle.draw(DATA).repeat(seeds, 1)
    guide = oracle.guide(*GUIDES[name])
    found = importance_sampling(oracle.model, guide, x, num_samples=num, seed=dim, chunk_rows=50_000)
    return found, (found.log_px - oracle.log_px(x)).reshape(seeds, DATA)


def relative_variance(name: str, dim: int) -> float:
    return LinearGaussian(data_dim=dim + 2, latent_dim=dim).relative_variance(*GUIDES[name])


def check_coverage(found: Estimate, errors: torch.Tensor) -> None:
    good = found.reliable
    assert float(good.double().mean()) > 0.9
    for error in (found.std_error, found.jackknife_error):
        covered = (errors.flatten()[good].abs() <= 1.96 * error[good]).double()
        assert abs(float(covered.mean()) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(covered))


@pytest.mark.thin(2, by="name")
@pytest.mark.parametrize(("name", "dim"), CELLS)
def test_intervals_cover_or_are_reported_as_unknown(name, dim):
    found, errors = estimates(name, dim)
    lower = errors.mean(1) - math.log(20) / DATA
    assert int((lower > 0).sum()) <= 0.05 * SEEDS + 4 * math.sqrt(SEEDS * 0.05 * 0.95)
    if name == "exact":
        assert float(errors.abs().max()) < 1e-10
        assert float(found.std_error.max()) < 1e-12
        assert float(found.jackknife_error.max()) < 1e-12
        assert torch.equal(found.smoothed, found.log_px)
        assert bool(found.reliable.all())
        return
    # k = 1 - 1/4 for the narrow guide; a wide one has bounded weights, a shifted one weights with every moment.
    if name != "narrow" and relative_variance(name, dim) / DRAWS < 0.01:
        check_coverage(found, errors)
        return
    flagged = float(found.pareto_k.median()) > found.threshold
    scatter = float(errors.std()) / math.sqrt(errors.numel())
    bias = float(found.bias[found.reliable].mean()) if bool(found.reliable.any()) else 0.0
    assert flagged or abs(bias - float(errors.mean())) < 4 * scatter
    if name == "narrow" or relative_variance(name, dim) / DRAWS > 0.1:
        assert flagged


@pytest.mark.parametrize(("name", "dim"), [("wide", 5), ("shifted", 2)])
def test_errors_cover_with_more_draws(name, dim):
    assert relative_variance(name, dim) / 2000 < 0.01
    check_coverage(*estimates(name, dim, 2000))


def wide_by(datum_scale):
    """A guide that is too wide by a factor of each datum's own, and a model that takes it too."""
    oracle = LinearGaussian()

    def model(x, stretch):
        oracle.model(x)

    def guide(x, stretch):
        mean, factor = oracle.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=stretch[:, None, None] * factor))

    return oracle, model, guide


STRETCH = torch.tensor([1.0, 1.02, 1.3, 2.0, 3.0, 0.5] * 5, dtype=torch.float64)


def test_each_datum_gets_the_draws_its_error_asks_for():
    """K is Var(w) / (p se)^2 in closed form, between the fewest and the most; the errors reached are the target."""
    oracle, model, guide = wide_by(STRETCH)
    x = oracle.draw(30)
    found = importance_sampling(model, guide, x, STRETCH, target_se=0.03, max_samples=20_000, seed=1)
    for stretch in (1.0, 1.02):
        assert found.draws[STRETCH == stretch].tolist() == [128] * 5
    for stretch in (1.3, 2.0, 3.0):
        ours = STRETCH == stretch
        exact = oracle.relative_variance(0.0, stretch) / 0.03**2
        # Rounded up by at most the square root of 2; a pilot of 500 draws knows a variance of these weights to 15 %.
        assert bool(((found.draws[ours] > 0.5 * exact) & (found.draws[ours] < 2.5 * exact)).all())
        assert float(found.std_error[ours].max()) < 0.03 * 1.5
    assert float(found.std_error[:2].max()) < 0.03
    # Infinite variance: those whose k tells get all that is allowed.
    assert int((found.draws[STRETCH == 0.5] == 20_000).sum()) >= 2
    good = found.reliable & (STRETCH != 0.5)
    error = found.log_px - oracle.log_px(x)
    assert float((error[good].abs() - 4 * found.std_error[good]).max()) < 1e-10
    assert (found.num_samples, found.num_pilot) == (int(found.draws.max()), 500)
    summary = found.summary()
    assert (summary.draws, summary.pilot_draws) == (int(found.draws.sum()), 500 * 30)
    torch.testing.assert_close(found.thresholds[0], torch.tensor(1 - 1 / math.log10(128), dtype=torch.float64))


def test_the_pilot_enters_nothing_else():
    """A datum's estimate is that of the same number of draws without a pilot; nothing else decides."""
    oracle, model, guide = wide_by(STRETCH)
    x, ids = oracle.draw(30), torch.arange(100, 130)
    found = importance_sampling(model, guide, x, STRETCH, target_se=0.1, max_samples=3000, seed=1, data_ids=ids)
    assert len(found.draws.unique()) >= 3
    for num in found.draws.unique().tolist():
        plain = importance_sampling(model, guide, x, STRETCH, num_samples=num, seed=1, data_ids=ids)
        rows = found.draws == num
        torch.testing.assert_close(found.log_px[rows], plain.log_px[rows], rtol=0, atol=1e-10)
        torch.testing.assert_close(found.smoothed[rows], plain.smoothed[rows], rtol=0, atol=1e-9)


def test_the_pilot_has_draws_of_its_own(monkeypatch):
    """K chosen by the draws that are reported would bias them: none of the pilot's numbers are the estimate's."""
    oracle, model, guide = wide_by(STRETCH)
    x, pilots = oracle.draw(30), []
    choose = adaptive.choose_samples
    monkeypatch.setattr(adaptive, "choose_samples", lambda pilot, *rest: pilots.append(pilot) or choose(pilot, *rest))
    importance_sampling(model, guide, x, STRETCH, target_se=0.1, max_samples=600, seed=1)
    plain = importance_sampling(model, guide, x, STRETCH, num_samples=500, seed=1)
    wrong = STRETCH > 1
    ours, theirs = (e.log_px[wrong] - oracle.log_px(x)[wrong] for e in (pilots[0], plain))
    assert float((ours - theirs).abs().min()) > 1e-9
    correlation = float(
        torch.corrcoef(torch.stack([ours / plain.std_error[wrong], theirs / plain.std_error[wrong]]))[0, 1]
    )
    assert abs(correlation) < 4 / math.sqrt(int(wrong.sum()))


def test_draws_made_are_draws_reported():
    rows = []
    vae = pv.VAE((6,), 2, (5,))
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)).round()
    vae.decoder.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[:-1].numel()))
    found = importance_sampling(vae.model, vae.guide, x, target_se=0.03, max_samples=20_000, seed=0)
    groups = found.draws.unique().tolist()
    assert len(groups) > 1
    # Beside them: the first trace and one draw alone of all data, and of each group, with a comparison of its rows.
    beside = 2 * 8 + sum(2 * int((found.draws == k).sum()) for k in groups) + len(groups) * 8 + 8
    assert 0 <= sum(rows) - (found.draws.sum() + 500 * 8) <= beside


def vae_pair(name):
    torch.manual_seed(3)
    if name == "vae":
        vae = pv.VAE((6,), 2, (5,)).eval()
        return vae.model, vae.guide
    weight = torch.randn(2, 6)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z @ weight * y[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = torch.stack([x.mean(-1), x.std(-1)], -1)
            z = pyro.sample("z", dist.LowRankMultivariateNormal(loc, loc[..., None], torch.full((2,), 0.3)))
            spread = 0.5 if name == "independent" else z.tanh().mean(-1).exp()
            pyro.sample("y", dist.LogNormal(x.mean(-1), spread))

    return model, guide


@pytest.mark.parametrize("name", ["vae", "independent", "dependent"])
@pytest.mark.thin(3)
def test_chunks_batches_rows_and_threads_change_rounding_only(name):
    model, guide = vae_pair(name)
    x = torch.rand(11, 6, generator=torch.Generator().manual_seed(1)).round()
    ids = torch.arange(50, 61)

    def estimate(rows=slice(None), **options):
        return importance_sampling(model, guide, x[rows], num_samples=300, seed=4, data_ids=ids[rows], **options)

    whole = estimate()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        other = estimate()
    finally:
        torch.set_num_threads(threads)
    split = Estimate.cat([estimate(torch.arange(i, min(i + 4, 11))) for i in range(0, 11, 4)])
    changed = {
        "one draw a call": estimate(chunk_rows=1),
        "an uneven last chunk": estimate(chunk_rows=77),
        "one chunk": estimate(chunk_rows=100_000),
        "one by one": estimate(vectorize=False),
        "order": estimate(order).take(order.argsort()),
        "batches": split,
        "threads": other,
    }
    for what, found in changed.items():
        for field in (f.name for f in dataclasses.fields(Estimate) if f.name != "num_pilot"):
            ours, theirs = (torch.as_tensor(getattr(e, field)).double() for e in (found, whole))
            close = torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)
            assert close, f"{what}: {field} differs by {(ours - theirs).abs().max()}"
    assert (
        float((importance_sampling(model, guide, x, num_samples=300, seed=5).log_px - whole.log_px).abs().min()) > 1e-5
    )


def test_a_seed_is_all_that_other_sites_depend_on():
    """No stream for a Gamma or a discrete site: torch's generator, put where the seed says, and put back."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    # p(x) is negative binomial: 2 failures, success 1/2.
    exact = dist.NegativeBinomial(2.0, probs=torch.tensor(0.5, dtype=torch.float64)).log_prob(x)
    state = torch.get_rng_state()
    found = [prior_sampling(model, x, num_samples=4000, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0].log_px, found[1].log_px)
    assert not torch.equal(found[0].log_px, found[2].log_px)
    assert float(((found[0].log_px - exact).abs() / found[0].std_error).max()) < 4
    apart = [prior_sampling(model, x[:1].expand(2), num_samples=50, seed=1, data_ids=[a, a + 1]) for a in (0, 2)]
    assert not torch.equal(apart[0].log_px, apart[1].log_px)


def test_without_a_seed_the_generator_decides():
    oracle = LinearGaussian()
    x = oracle.draw(3)
    found = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        found.append(importance_sampling(oracle.model, oracle.guide(0.2), x, num_samples=20).log_px)
    again = importance_sampling(oracle.model, oracle.guide(0.2), x, num_samples=20).log_px
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(again, found[2])


def test_many_draws_of_one_datum():
    oracle = LinearGaussian()
    x = oracle.draw(1)
    found = importance_sampling(oracle.model, oracle.guide(0.5, 1.2), x, num_samples=100_000, seed=0)
    relative = math.sqrt(oracle.relative_variance(0.5, 1.2) / 100_000)
    assert float(found.std_error) == pytest.approx(relative, rel=0.1)
    assert abs(float(found.log_px - oracle.log_px(x))) < 4 * relative
    assert float(found.ess) == pytest.approx(1e5 / (1 + oracle.relative_variance(0.5, 1.2)), rel=0.05)


def marked(mark):
    """A mixture whose component is marked for enumeration in the guide, the model, or both."""
    probs, locs = (
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
        torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64),
    )
    infer = {"enumerate": "parallel"}

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(probs), infer=infer if "model" in mark else {})
            z = pyro.sample("z", dist.Normal(locs[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if "guide" in mark:
                pyro.sample("y", dist.Categorical(torch.ones(3, dtype=torch.float64)), infer=infer)
            pyro.sample("z", dist.Normal(x * 0.8, 0.7))

    def log_px(x):
        return (probs.log() + dist.Normal(locs, math.sqrt(1.25)).log_prob(x[:, None])).logsumexp(-1)

    return model, guide, log_px


@pytest.mark.parametrize("mark", ["guide", "model", "guide and model"])
def test_marked_sites_are_summed_over(mark):
    model, guide, log_px = marked(mark)
    x = torch.linspace(-3, 3, 5, dtype=torch.float64)
    found = importance_sampling(model, guide, x, num_samples=4000, seed=0)
    assert bool(found.reliable.all())
    assert float(((found.log_px - log_px(x)).abs() / found.std_error).max()) < 4
    assert bool((found.elbo < found.log_px).all())
    torch.testing.assert_close(found.elbo, -found.rate - found.distortion)


def bad(**options):
    oracle = LinearGaussian()
    x = options.pop("x", oracle.draw(4))
    return importance_sampling(oracle.model, oracle.guide(0.1), x, **{"num_samples": 50, "seed": 0} | options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"x": torch.empty(0, 5)}, r"data: expected at least one datum, got a tensor of shape \(0, 5\)"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"data_ids": [0, 1, 2]}, "data_ids: expected 4 numbers, one for each datum, got 3"),
        ({"data_ids": [0, 1, 1, 2]}, "data_ids: expected distinct integers"),
        ({"data_ids": [-1, 0, 1, 2]}, "data_ids: expected distinct integers"),
        ({"data_ids": [0.5, 1.0, 2.0, 3.0]}, "data_ids: expected distinct integers"),
        ({"target_se": 0.0}, "target_se: expected a positive number of nats, got 0.0"),
        ({"target_se": math.nan}, "target_se: expected a positive number of nats, got nan"),
        ({"target_se": 0.1, "max_samples": 1}, "max_samples: expected at least 2, since one draw has no error, got 1"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        bad(**options)


def test_rows_that_are_no_data_are_refused():
    """As long as the data by chance; a plate that holds a part of them; a plate whose length is no tensor's."""
    oracle, model, _ = wide_by(STRETCH)
    options = {"target_se": 0.05, "max_samples": 20_000, "seed": 0}

    def standing(x, scales):
        with pyro.plate("data", len(x)):
            scale = (0.3 * scales.mean() * (1 + 2 * (x[:, 0] > 0)))[:, None]
            pyro.sample("z", dist.Normal(oracle.posterior(x)[0], scale).to_event(1))

    with pytest.raises(ValueError, match="target_se: importance weights must not depend on the rest"):
        importance_sampling(model, standing, oracle.draw(30), STRETCH, **options)

    def numbered(x, stretch, rows):
        with pyro.plate("data", rows):
            pyro.sample("z", dist.MultivariateNormal(*pick(x, stretch, rows)))

    def pick(x, stretch, rows):
        mean, factor = oracle.posterior(x)
        covariance = stretch[:, None, None] ** 2 * (factor @ factor.T)
        return mean[:rows].expand(rows, 2), covariance[:rows].expand(rows, 2, 2)

    def counted(x, stretch, rows):
        with pyro.plate("data", rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ oracle.weight.T, 1.0).to_event(1), obs=x.mean(0).expand(rows, 5))

    with pytest.raises(ValueError, match="target_se: .* pass num_samples"):
        importance_sampling(counted, numbered, oracle.draw(30), STRETCH, 30, **options)
