"""The rate in three parts: weights by their definition, expectations over all batches, sums over a grid."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_vae import VAE, elbo, fit
from pyro_vae.evidence import aggregate_posterior
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import IWAE, SVI, TotalCorrelation, batch_weights
from pyro_vae.inference.capture import graph as capture
from pyro_vae.inference.kl.total_correlation import ESTIMATORS
from tests.evidence.criticism.test_aggregate_posterior import CODES, PRIOR, on_grid
from tests.oracles import within

X = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None].repeat(1, 2)
WRAPPED = ["trace", "mean-field"]


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", PRIOR)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide_of(codes):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", CODES[codes])

    return guide


def loss_of(objective, programs=None, x=X, seed=3):
    pyro.set_rng_seed(seed)
    return objective.terms(*(programs or (model, guide_of("diagonal"))), x)


# Weights


def densities(total, seed=0):
    """Of a draw of each datum under each code, shape (N, N)."""
    return torch.rand(total, total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def estimates(kind, total, size, row=0):
    """The estimates of q(z_0) from every ordered batch of distinct data that has datum 0 in this row, and q(z_0)."""
    density = densities(total)[0]
    weights = batch_weights(kind, size, total)[row]
    found = [
        float((weights * density[[*others[:row], 0, *others[row:]]]).sum())
        for others in itertools.permutations(range(1, total), size - 1)
    ]
    return torch.tensor(found, dtype=torch.float64), float(density.mean())


@pytest.mark.parametrize(("total", "size"), [(6, 2), (6, 3), (6, 5), (6, 6), (4, 4), (3, 1)])
@pytest.mark.parametrize("kind", [name for name in ESTIMATORS if name != "weighted"])  # biased
def test_stratified_weights_have_no_bias_over_all_batches(kind, total, size):
    assert batch_weights(kind, size, total).sum(1).tolist() == pytest.approx([1.0] * size)
    for row in {0, size // 2, size - 1}:
        found, exact = estimates(kind, total, size, row)
        if size > 1:  # one datum alone is all that is known
            assert float(found.mean()) == pytest.approx(exact, abs=1e-12)
        if kind == "even" and size == total:
            assert found.tolist() == pytest.approx([exact] * len(found))


def test_weights_are_those_of_the_definition():
    """Chen et al. 2018, appendix C: f(z, n*, B) with M + 1 data in the batch, of which one is n*."""
    total, size = 50, 7
    others = size - 1
    weights = batch_weights("stratified", size, total)
    for row in range(size):
        assert float(weights[row, row]) == pytest.approx(1 / total)
        rest = sorted(float(w) for column, w in enumerate(weights[row]) if column != row)
        assert rest == pytest.approx([(total - others) / (total * others)] + [1 / others] * (others - 1))
    # Every datum is the odd one once.
    odd = (weights - (total - others) / (total * others)).abs() < 1e-12
    assert odd.sum(0).tolist() == [1] * size
    assert torch.equal(batch_weights("weighted", size, total), torch.full((size, size), 1 / 350, dtype=torch.float64))
    even = batch_weights("even", size, total)
    assert even.diagonal().tolist() == pytest.approx([1 / total] * size)
    assert even[0, 1:].tolist() == pytest.approx([(total - 1) / (total * others)] * others)


def test_even_weights_are_the_mean_over_orders_and_better():
    total, size = 6, 4
    density = densities(total)[0]
    spread = []
    for others in itertools.combinations(range(1, total), size - 1):
        orders = [
            float((batch_weights("stratified", size, total)[0] * density[[0, *order]]).sum())
            for order in itertools.permutations(others)
        ]
        even = float((batch_weights("even", size, total)[0] * density[[0, *others]]).sum())
        assert even == pytest.approx(sum(orders) / len(orders), abs=1e-12)
        spread.append(max(orders) - min(orders))
    assert min(spread) > 0
    (even, exact), (stratified, _) = (estimates(kind, total, size) for kind in ("even", "stratified"))
    assert float(even.var()) < 0.9 * float(stratified.var())
    # The logarithm of either is biased low.
    assert float(stratified.log().mean()) < float(even.log().mean()) < math.log(exact)


def test_weights_that_are_refused():
    with pytest.raises(ValueError, match="estimator 'sampled'.*even, stratified, weighted"):
        batch_weights("sampled", 3, 5)
    with pytest.raises(ValueError, match="num_data: expected at least the batch size 8, got 5; pass the size of the"):
        batch_weights("even", 8, 5)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        batch_weights("even", 0, 5)
    with pytest.raises(TypeError, match="num_data: expected a whole number, got float"):
        batch_weights("even", 3, 5.0)


# The loss


def by_hand(codes, estimator, total, weights, wrapped, seed=3):
    """The loss, in loops, from the same draws."""
    q, num = CODES[codes], len(X)
    pyro.set_rng_seed(seed)
    z = poutine.trace(guide_of(codes)).get_trace(X).nodes["z"]["value"]
    table = batch_weights(estimator, num, total)
    if estimator == "weighted":
        table = table * total  # the factor 1/N, which is that of no density, is left out
    value = 0.0
    for i in range(num):
        joint = sum(float(table[i, j] * q.log_prob(z[i])[j].exp()) for j in range(num))
        product = 1.0
        for unit in (0, 1):
            scales = q.variance.sqrt()
            each = dist.Normal(q.mean[:, unit], scales[:, unit]).log_prob(z[i, unit]).exp()
            product *= sum(float(table[i, j] * each[j]) for j in range(num))
        given, prior = float(q.log_prob(z[i])[i]), float(PRIOR.log_prob(z[i]))
        parts = (given - math.log(joint), math.log(joint) - math.log(product), math.log(product) - prior)
        assert sum(parts) == pytest.approx(given - prior)
        rate = given - prior
        if wrapped == "mean-field":
            rate = float(torch.distributions.kl_divergence(q, PRIOR)[i])
        value -= float(dist.Normal(z[i], 1.0).log_prob(X[i]).sum())
        value += rate + sum((w - 1) * part for w, part in zip(weights, parts, strict=True))
    return value


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("weights", [(1.0, 6.0, 1.0), (0.0, 3.0, 0.5)])
def test_the_loss_is_its_definition(wrapped, estimator, weights):
    information, weight, units = weights
    objective = TotalCorrelation(elbo(wrapped), weight, information, units, estimator, num_data=12)
    terms = loss_of(objective)
    assert float(terms.loss) == pytest.approx(by_hand("diagonal", estimator, 12, weights, wrapped), abs=1e-9)
    plain = loss_of(elbo(wrapped))
    assert float(terms.rate) == pytest.approx(float(plain.rate))
    assert float(terms.distortion) == pytest.approx(float(plain.distortion))


@pytest.mark.parametrize("codes", ["full", "low rank"])
def test_the_loss_of_a_full_covariance_is_its_definition(codes):
    objective = TotalCorrelation(elbo("trace"), 4.0, 0.5, 2.0, "stratified", num_data=9)
    expected = by_hand(codes, "stratified", 9, (0.5, 4.0, 2.0), "trace")
    assert float(loss_of(objective, (model, guide_of(codes))).loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_equal_weights_are_a_beta(wrapped, options):
    inner = elbo(wrapped, max_plate_nesting=1, **options)
    vae = VAE((6,), 3, (5,)).double()
    programs, x = (vae.model, vae.guide), torch.bernoulli(torch.full((7, 6), 0.5, dtype=torch.float64))
    for weight in (1.0,) if wrapped == "mean-field" else (1.0, 2.5):
        losses = []
        for objective, pair in (
            (TotalCorrelation(inner, weight, weight, weight), programs),
            (inner, scale_kl_pair(*programs, weight)),
        ):
            loss = loss_of(objective, pair, x).loss
            losses.append((loss, *torch.autograd.grad(loss, [*vae.parameters()])))
        for ours, theirs in zip(*losses, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_common_beta_multiplies_all_three():
    objective = TotalCorrelation(elbo("trace"), 4.0)
    terms = loss_of(objective)
    weighted = loss_of(objective, scale_kl_pair(model, guide_of("diagonal"), 0.5))
    assert float(weighted.loss) == pytest.approx(float(terms.distortion + 0.5 * (terms.loss - terms.distortion)))
    each = torch.tensor([0.0, 1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    ours = loss_of(objective, scale_kl_pair(model, guide_of("diagonal"), each))
    assert float(ours.loss) != pytest.approx(float(terms.loss))
    assert float(ours.rate) == pytest.approx(float(terms.rate))


@pytest.mark.parametrize("codes", CODES)
def test_its_parts_of_a_whole_set_against_sums_on_a_grid(codes):
    """With all data in the batch nothing is estimated but the mean over draws."""
    exact = on_grid(CODES[codes], PRIOR)
    names = {
        "information_weight": "mutual_information",
        "weight": "total_correlation",
        "unit_weight": "dimension_wise_kl",
    }
    inner = elbo("trace", max_plate_nesting=1, num_particles=200, vectorize_particles=True)
    ones = dict.fromkeys(names, 1.0)
    for option, name in names.items():
        found = []
        for seed in range(40):
            base, more = (
                loss_of(TotalCorrelation(inner, **{**ones, option: w}), (model, guide_of(codes)), seed=seed).loss
                for w in (1.0, 2.0)
            )
            found.append(float(more - base) / len(X))
        found = torch.tensor(found)
        assert within(found.mean(), exact[name], found.std() / math.sqrt(len(found))), name


def test_the_size_of_the_data_moves_no_gradient_of_weighted_codes():
    """And even codes of a batch that is taken for all data have the same gradient."""
    locs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x = torch.zeros(4, 3, dtype=torch.float64)

    def program(fn):
        def run(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", fn.to_event(1))
                if fn is prior:
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        return run

    prior = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0)
    grads = {}
    for kind, total in (("weighted", 4), ("weighted", 1000), ("even", None), ("even", 1000), ("stratified", 1000)):
        objective = TotalCorrelation(elbo("trace"), 5.0, estimator=kind, num_data=total)
        loss = loss_of(objective, (program(prior), program(dist.Normal(locs, 0.7))), x).loss
        grads[kind, total] = torch.autograd.grad(loss, locs)[0]
    torch.testing.assert_close(grads["weighted", 4], grads["weighted", 1000])
    torch.testing.assert_close(grads["weighted", 4], grads["even", None])
    for other in (("even", 1000), ("stratified", 1000)):
        assert not torch.allclose(grads["weighted", 4], grads[other], rtol=0.01)


def test_the_size_of_a_subsampled_plate_is_that_of_the_data():
    def program(of_model):
        def run(x):
            with pyro.plate("data", 20, subsample_size=5, dim=-1) as rows:
                z = pyro.sample("z", PRIOR if of_model else dist.Normal(x[rows], 0.6).to_event(1))
                if of_model:
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[rows])

        return run

    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, told, other = (
        loss_of(
            TotalCorrelation(elbo("trace"), 6.0, estimator="even", num_data=total), (program(True), program(False)), x
        )
        for total in (None, 20, 40)
    )
    assert float(ours.loss) == pytest.approx(float(told.loss))
    assert float(ours.loss) != pytest.approx(float(other.loss))
    scaled = loss_of(TotalCorrelation(elbo("trace"), 1.0), (program(True), program(False)), x)
    assert float(scaled.loss) == pytest.approx(4 * float(scaled.rate + scaled.distortion))  # N / B


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_datum_alone_has_no_total_correlation(estimator):
    vae = VAE((6,), 3, (5,)).double()
    x = torch.ones(1, 6, dtype=torch.float64)
    grads = []
    for objective in (TotalCorrelation(elbo("trace"), 9.0, estimator=estimator, num_data=100), elbo("trace")):
        loss = loss_of(objective, (vae.model, vae.guide), x).loss
        grads.append(torch.autograd.grad(loss, [*vae.parameters()]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_bound_is_the_true_one_and_chooses_the_epoch():
    objective = TotalCorrelation(elbo("trace"), 9.0)
    pyro.set_rng_seed(0)
    ours = objective.bound(model, guide_of("diagonal"), X)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(ours, elbo("trace").bound(model, guide_of("diagonal"), X))
    assert objective.selection(10.0, 2.0, 1.0) == -12.0
    assert objective.selection(10.0, 2.0, 0.5) == -11.0


def test_training_presses_the_total_correlation_and_not_the_information():
    """Codes of directions lie on a circle: at a weight of 1 their units depend on each other, pressed they do less so."""
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * (torch.rand(400, 1, generator=generator) - torch.arange(24) / 24)
    x = torch.bernoulli((6 * angles.cos()).sigmoid(), generator=generator)
    found = {}
    for weight in (1.0, 15.0):
        torch.manual_seed(0)
        vae = VAE((24,), 2, (32,))
        objective = TotalCorrelation(elbo("mean-field", max_plate_nesting=1), weight, estimator="even", num_data=400)
        fit(vae, x, elbo=objective, epochs=60, batch_size=100, lr=5e-3, progress=False, compile=False)
        found[weight] = aggregate_posterior(vae.model, vae.guide, x, num_samples=1200, seed=0)
    plain, pressed = found[1.0], found[15.0]
    fell = plain.total_correlation - pressed.total_correlation
    assert fell > 4 * math.hypot(plain.total_correlation_error, pressed.total_correlation_error)
    assert pressed.total_correlation < 0.7 * plain.total_correlation
    assert pressed.mutual_information > plain.mutual_information


@pytest.mark.parametrize(
    ("estimator", "wrapped"), [("even", "trace"), ("stratified", "mean-field"), ("weighted", "mean-field")]
)
def test_captured_steps_are_the_eager_ones(estimator, wrapped, monkeypatch):
    """Batches of several sizes, each with weights of its own; the graph runs without Inductor."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)
    x = torch.bernoulli(torch.full((7, 6), 0.5), generator=torch.Generator().manual_seed(0))
    found = []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = VAE((6,), 3, (5,))
        objective = TotalCorrelation(elbo(wrapped), 5.0, 0.5, 2.0, estimator, num_data=30)
        svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 1e-2}), objective, compile=compile)
        torch.manual_seed(5)
        losses = torch.tensor([svi.step(batch) for batch in (x, x, x[:4], x[:1], x, x[:4])])
        found.append((losses, *(p.detach() for p in vae.parameters())))
    assert svi.compiled
    assert svi._captured.captures == 3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


# What is refused


def outer(fn):
    def run(x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("parts", 2, dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            if fn == "model":
                pyro.sample("x", dist.Normal(torch.zeros(len(x), 1), 1.0), obs=x[:, :1])

    return run


def one(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.ones(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def two(x, obs=True):
    with pyro.plate("data", len(x)):
        a, b = (pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1)) for name in "ab")
        if obs:
            pyro.sample("x", dist.Normal(a + b, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("programs", "sentence"),
    [
        ((two, lambda x: two(x, False)), "expected one latent site, in model and guide, got 2: a, b; join the sites"),
        ((one, AutoNormal(one)), "expected one latent site, in model and guide, got 2: z, z_unconstrained"),
        ((outer("model"), outer("guide")), "with no mask and no plate besides the data plate, got the plate 'parts'"),
        ((poutine.mask(model, mask=True), poutine.mask(guide_of("full"), mask=torch.ones(5).bool())), "got a mask"),
        ((model, lambda x: delta(x)), "at site 'z', .* got Delta; use a guide with known unit marginals"),
    ],
)
def test_sites_that_are_refused(programs, sentence):
    with pytest.raises(ValueError, match=f"^total correlation: .*{sentence}"):
        TotalCorrelation(elbo("trace")).loss(*programs, X)


def delta(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x).to_event(1))


def test_options_that_are_refused():
    with pytest.raises(TypeError, match=r"total correlation: expected elbo\('trace'\).*got IWAE"):
        TotalCorrelation(IWAE())
    for name in ("weight", "information_weight", "unit_weight"):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number of at least 0, got -1"):
            TotalCorrelation(elbo("trace"), **{name: -1.0})
        with pytest.raises(TypeError, match=f"^{name}: expected a finite number"):
            TotalCorrelation(elbo("trace"), **{name: "6"})
    with pytest.raises(ValueError, match="estimator 'mws'"):
        TotalCorrelation(elbo("trace"), estimator="mws")
    with pytest.raises(ValueError, match="num_data: expected at least 1"):
        TotalCorrelation(elbo("trace"), num_data=0)
    with pytest.raises(ValueError, match="num_data: expected at least the batch size 5, got 4"):
        TotalCorrelation(elbo("trace"), num_data=4).loss(model, guide_of("full"), X)
