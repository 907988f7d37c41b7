"""``elbo("enum")`` where labels are known for some data only, against exact sums over the others."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate

from pyro_vae import elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from tests.oracles import within

#: Pyro's, of a guide that observes, as one with obs_mask does.
pytestmark = pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")
PARALLEL = {"enumerate": "parallel"}
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
LOCS = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
LABELS = torch.tensor([0, -1, 2, -1, 1])
KNOWN = LABELS >= 0
X = torch.tensor([-1.8, 0.4, 1.0, 3.0, -0.2], dtype=torch.float64)


def log_q():
    """log q(y|x), wrong, shape (5, 3)."""
    slope = pyro.param("slope", torch.tensor([-0.5, 0.1, 0.4], dtype=torch.float64))
    return (slope * X[:, None]).log_softmax(-1)


def model(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(PRIOR), obs=LABELS.clamp(min=0), obs_mask=KNOWN)
        pyro.sample("x", dist.Normal(LOCS[y], 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=~KNOWN):
        pyro.sample("y_unobserved", dist.Categorical(logits=log_q()), infer=PARALLEL)


@config_enumerate
def observing_guide(x):
    """Pyro's ``obs_mask`` on this side too, which makes a site of the known labels."""
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=log_q()), obs=LABELS.clamp(min=0), obs_mask=KNOWN)


def exact(beta=1.0):
    """Bound, rate and distortion of each datum: log p(x, y) of a known label, else the sum over y; shape (3, 5)."""
    q, likelihood = log_q(), dist.Normal(LOCS, 1.0).log_prob(X[:, None])
    chosen = LABELS.clamp(min=0)[:, None]
    joint = (PRIOR.log() + likelihood).gather(1, chosen)[:, 0]
    rate = torch.where(KNOWN, 0.0, (q.exp() * (q - PRIOR.log())).sum(1))
    distortion = torch.where(KNOWN, -joint, -(q.exp() * likelihood).sum(1))
    return -distortion - beta * rate, rate, distortion


GUIDES = pytest.mark.parametrize("guide", [guide, observing_guide], ids=["masked", "observing"])
PARTICLES = pytest.mark.parametrize("options", [{}, {"num_particles": 3, "vectorize_particles": True}], ids=["1", "3"])


@GUIDES
@PARTICLES
def test_a_known_label_counts_once_in_the_bound(guide, options):
    objective = elbo("enum", max_plate_nesting=1, **options)
    torch.testing.assert_close(objective.bound(model, guide, X), exact()[0])
    terms = objective.terms(model, guide, X)
    for found, expected in zip((-terms.loss, terms.rate, terms.distortion), exact(), strict=True):
        torch.testing.assert_close(found, expected.sum())


@GUIDES
@pytest.mark.parametrize("beta", [0.3, 4.0])
def test_loss_and_gradient_under_a_weight_of_the_kl(guide, beta):
    objective = elbo("enum", max_plate_nesting=1)
    loss = objective.differentiable_loss(*scale_kl_pair(model, guide, beta), X)
    slope = pyro.get_param_store()["slope"]
    value = exact(beta)[0].sum()
    torch.testing.assert_close(-loss, value)
    (ours,), (theirs,) = (torch.autograd.grad(v, slope) for v in (-loss, value))
    torch.testing.assert_close(ours, theirs)


def test_a_label_summed_out_of_the_model_counts_once():
    objective = elbo("enum", max_plate_nesting=1)
    found = objective.bound(config_enumerate(model), lambda x: None, X)
    joint = PRIOR.log() + dist.Normal(LOCS, 1.0).log_prob(X[:, None])
    expected = torch.where(KNOWN, joint.gather(1, LABELS.clamp(min=0)[:, None])[:, 0], joint.logsumexp(1))
    torch.testing.assert_close(found, expected)


def beside_a_drawn_site(kind, of_guide, known, logits, offset=0.0):
    """Programs in which y is masked where it is known and 0, and k is drawn without reparameterized draws."""

    def site(logits, infer):
        fn = dist.Categorical(logits=logits)
        if kind == "site":
            with poutine.mask(mask=~known):
                return pyro.sample("y", fn, infer=infer)
        return pyro.sample("y", fn.mask(~known if kind == "distribution" else False), infer=infer)

    def drawing_model(x):
        with pyro.plate("data", len(x)):
            y = torch.where(known, 0, site(PRIOR.log(), None if of_guide else PARALLEL))
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5).double()))
            pyro.sample("x", dist.Normal(LOCS[y] + k + offset, 1.0), obs=x)

    def drawing_guide(x):
        with pyro.plate("data", len(x)):
            if of_guide:
                site(logits, PARALLEL)
            pyro.sample("k", dist.Bernoulli(torch.tensor(0.3).double()))

    return drawing_model, drawing_guide


@pytest.mark.parametrize(("kind", "of_guide"), [("site", True), ("site", False), ("distribution", True)])
def test_pyros_contraction_counts_once_what_a_mask_leaves_out(kind, of_guide):
    params = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.4, 0.1, -0.5], 0.2)]
    logits, offset = params
    programs = beside_a_drawn_site(kind, of_guide, KNOWN.repeat(400), logits, offset)
    q, q_k = logits.log_softmax(0)[:, None], torch.tensor([0.7, 0.3], dtype=torch.float64)
    means = LOCS[:, None] + torch.tensor([0.0, 1.0]) + offset
    likelihood = dist.Normal(means, 1.0).log_prob(X[:, None, None])  # (5, 3, 2)
    prior = PRIOR.log()[:, None]
    unknown = (q.exp() * (likelihood + prior - q)).sum(1) if of_guide else (likelihood + prior).logsumexp(1)
    given_k = torch.where(KNOWN[:, None], likelihood[:, 0], unknown)
    exact = -(q_k * (given_k - math.log(2) - q_k.log())).sum()

    def with_gradients(value):
        grads = torch.autograd.grad(value, params if of_guide else [offset])
        return torch.cat([part.detach().reshape(-1) for part in (value, *grads)])

    torch.set_default_dtype(torch.float64)  # Pyro's contraction mixes it with that of the programs
    try:
        pyro.set_rng_seed(0)
        found = []
        for _ in range(20):
            loss = elbo("enum", max_plate_nesting=1).differentiable_loss(*programs, X.repeat(400)) / 400
            found.append(with_gradients(loss))
    finally:
        torch.set_default_dtype(torch.float32)
    values = torch.stack(found)
    assert within(values.mean(0), with_gradients(exact), values.std(0) / math.sqrt(20))


@pytest.mark.parametrize(("kind", "of_guide"), [("distribution", False), ("nothing", False), ("nothing", True)])
def test_where_it_would_count_each_value_a_masked_distribution_is_refused(kind, of_guide):
    programs = beside_a_drawn_site(kind, of_guide, KNOWN, PRIOR.log())
    sentence = (
        "enumerated site 'y': a masked distribution .* sites that are not summed or reparameterized for each datum"
    )
    with pytest.raises(ValueError, match=sentence):
        elbo("enum", max_plate_nesting=1).loss(*programs, X)


@pytest.mark.parametrize("particles", [1, 4])
def test_a_training_term_is_a_mean_over_values_and_draws(particles):
    """It depends on y, which is summed over, and has a weight of its own; no bound has it."""

    weights = torch.tensor([0.3, 0.2, 0.9], dtype=torch.float64)

    def training(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(PRIOR))
            pyro.sample("x", dist.Normal(LOCS[y], 1.0), obs=x)
            with poutine.scale(scale=2.5):
                pyro.sample(
                    "term", dist.Bernoulli(weights[y]), obs=torch.ones(5).double(), infer={"auxiliary_loss": True}
                )

    def drawn(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=log_q()), infer=PARALLEL)

    objective = elbo("enum", max_plate_nesting=1, num_particles=particles, vectorize_particles=True)
    bound = (log_q().exp() * (PRIOR.log() + dist.Normal(LOCS, 1.0).log_prob(X[:, None]) - log_q())).sum()
    term = 2.5 * (log_q().exp() * weights.log()).sum()
    torch.testing.assert_close(-objective.differentiable_loss(training, drawn, X), bound + term)
    torch.testing.assert_close(objective.bound(training, drawn, X).sum(), bound)


def test_it_finds_the_plates_without_a_line_on_the_screen(caplog):
    objective = elbo("enum")
    with caplog.at_level("INFO"):
        objective.loss(model, guide, X)
    assert objective.max_plate_nesting == 1
    assert not caplog.records


@pytest.mark.parametrize("in_model", [True, False])
def test_a_value_that_logits_rule_out_enters_neither_sum_nor_gradient(in_model):
    """Ruled out in the guide, and in the model too: log p - log q is NaN there, and a mean under q does not ask for it."""
    out = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
    weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, 0.1, 0.2], [-2.0, 0.5, 1.5])]

    def ruling_model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=PRIOR.log() + (out if in_model else 0.0)))
            pyro.sample("x", dist.Normal(weights[1][y], 1.0), obs=x)

    def ruling_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=weights[0] * x[:, None] + out), infer=PARALLEL)

    prior, log_q = PRIOR.log()[:2], (weights[0] * X[:, None])[:, :2].log_softmax(-1)
    prior = prior.log_softmax(0) if in_model else prior
    exact = (log_q.exp() * (prior + dist.Normal(weights[1][:2], 1.0).log_prob(X[:, None]) - log_q)).sum(1)
    expected = torch.autograd.grad(exact.sum(), weights)
    objective = elbo("enum", max_plate_nesting=1)
    torch.testing.assert_close(objective.bound(ruling_model, ruling_guide, X), exact)
    draws = EnumeratedDraws(ruling_model, ruling_guide, (X,), {})(1)
    torch.testing.assert_close((draws.log_likelihood + draws.log_ratio)[0], exact)
    for bound in (
        -objective.differentiable_loss(ruling_model, ruling_guide, X),
        draws.log_likelihood + draws.log_ratio,
    ):
        for ours, theirs in zip(torch.autograd.grad(bound.sum(), weights), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
