"""Discrete latent sites summed over, against exact sums: the model's own, the guide's, and both beside drawn sites."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate

from pyro_vae import elbo
from pyro_vae.evidence import annealed_importance_sampling, importance_sampling
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.enumeration import enumerated_sites
from tests.oracles import all_binary, within

PARALLEL = {"enumerate": "parallel"}
PIXELS = all_binary(4)
P_Y1 = torch.tensor(0.3, dtype=torch.float64)
P_Y2 = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=torch.float64)
P_X = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def binary_joint(x):
    """log p(x, y1, y2), shape (B, 2, 3)."""
    prior = torch.stack([1 - P_Y1, P_Y1]).log()[:, None] + P_Y2.log()
    return prior + dist.Bernoulli(P_X).log_prob(x[:, None, None]).sum(-1)


def binary_model(first, second):
    """4 binary pixels given y1 of 2 values and y2 of 3, which depends on y1."""

    def model(x):
        with pyro.plate("data", len(x)):
            y1 = pyro.sample("y1", dist.Bernoulli(P_Y1), infer=first).long()
            y2 = pyro.sample("y2", dist.Categorical(P_Y2[y1]), infer=second)
            pyro.sample("x", dist.Bernoulli(P_X[y1, y2]).to_event(1), obs=x)

    return model


def binary_guide(sites):
    """A wrong guide over some of the sites; y2 depends on y1."""
    q2 = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            y1 = torch.zeros(len(x)).long()
            if "y1" in sites:
                y1 = pyro.sample("y1", dist.Bernoulli(0.2 + 0.1 * x.sum(-1)), infer=PARALLEL).long()
            if "y2" in sites:
                pyro.sample("y2", dist.Categorical(q2[y1]), infer=PARALLEL)

    return guide


@pytest.mark.parametrize("of_guide", [(), ("y1",), ("y2",), ("y1", "y2")])
@pytest.mark.parametrize("vectorize", [True, False])
def test_two_discrete_latents_are_summed_exactly(of_guide, vectorize):
    """All 16 images: every draw gives log p(x), whatever the guide, and the 16 probabilities sum to one."""
    marks = [{} if name in of_guide else PARALLEL for name in ("y1", "y2")]
    draws = EnumeratedDraws(binary_model(*marks), binary_guide(of_guide), (PIXELS,), {}, vectorize=vectorize)
    exact = binary_joint(PIXELS).logsumexp((1, 2))
    terms = draws(3)
    torch.testing.assert_close(terms.log_w, exact.expand(3, 16))
    torch.testing.assert_close(draws.first.log_w, exact[None])
    assert float(terms.log_w[0].exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert sorted(draws.sites) == ["y1", "y2"]
    assert draws.num_values == 6


@pytest.mark.parametrize("of_guide", [(), ("y1",), ("y1", "y2")])
def test_elbo_rate_and_distortion_are_exact_sums(of_guide):
    """The guide's own sites are averaged under q, the model's are summed out first."""
    marks = [{} if name in of_guide else PARALLEL for name in ("y1", "y2")]
    terms = EnumeratedDraws(binary_model(*marks), binary_guide(of_guide), (PIXELS,), {})(1)
    q1 = dist.Bernoulli(0.2 + 0.1 * PIXELS.sum(-1)).enumerate_support(expand=False)
    q1 = dist.Bernoulli(0.2 + 0.1 * PIXELS.sum(-1)).log_prob(q1).T  # (16, 2)
    q2 = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
    joint, p1 = binary_joint(PIXELS), torch.stack([1 - P_Y1, P_Y1]).log()
    if not of_guide:
        elbo, rate = joint.logsumexp((1, 2)), torch.zeros(16, dtype=torch.float64)
    elif of_guide == ("y1",):
        elbo = (q1.exp() * (joint.logsumexp(2) - q1)).sum(1)
        rate = (q1.exp() * (q1 - p1)).sum(1)
    else:
        q = q1[:, :, None] + q2
        elbo = (q.exp() * (joint - q)).sum((1, 2))
        rate = (q.exp() * (q - p1[:, None] - P_Y2.log())).sum((1, 2))
    torch.testing.assert_close((terms.log_likelihood + terms.log_ratio)[0], elbo)
    torch.testing.assert_close(-terms.log_ratio[0], rate)
    torch.testing.assert_close(-terms.log_likelihood[0], -elbo - rate)


class M2:
    """Kingma's M2 where everything is Gaussian: p(y) p(z) N(x; a_y + W z, s^2), y of 3 values, z and x in the plane."""

    probs = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.3], [-0.4, 0.8]], dtype=torch.float64)
    scale = 0.7
    guess = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)  # q(y|x), wrong

    def __init__(self, shift=0.0, stretch=1.0, by_model=False):
        self.shift, self.stretch, self.by_model = shift, stretch, by_model
        precision = torch.eye(2, dtype=torch.float64) + self.weight.T @ self.weight / self.scale**2
        self.covariance = torch.linalg.inv(precision)
        self.factor = torch.linalg.cholesky(self.covariance)

    def model(self, x, labels=None):
        with pyro.plate("data", len(x)):
            y = self.label(self.probs, labels, PARALLEL if self.by_model else {})
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(y @ self.means + z @ self.weight.T, self.scale).to_event(1), obs=x)

    def guide(self, x, labels=None):
        with pyro.plate("data", len(x)):
            if self.by_model:
                y = torch.eye(3, dtype=torch.float64)[1].expand(len(x), 3)
            else:
                y = self.label(self.guess, labels, PARALLEL)
            pyro.sample("z", self.q(x, y))

    @staticmethod
    def label(probs, labels, infer):
        fn = dist.OneHotCategorical(probs)
        if labels is None:
            return pyro.sample("y", fn, infer=infer)
        known = labels >= 0
        one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), 3).double()
        return pyro.sample("y", fn, obs=one_hot, obs_mask=known, infer=infer)

    def q(self, x, y):
        """The posterior p(z|x, y), shifted and stretched."""
        mean = (x - y @ self.means) @ self.weight @ self.covariance / self.scale**2
        return dist.MultivariateNormal(mean + self.shift * self.factor.sum(-1), scale_tril=self.stretch * self.factor)

    def joint(self, x):
        """log p(x, y), shape (B, 3)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(2, dtype=torch.float64)
        return self.probs.log() + dist.MultivariateNormal(self.means, covariance).log_prob(x[:, None])

    def kl(self):
        """KL(q(z|x, y) || p(z|x, y)), the same for all."""
        return 2 * (0.5 * (self.stretch**2 + self.shift**2 - 1) - math.log(self.stretch))

    def draw(self, num):
        generator = torch.Generator().manual_seed(5)
        z = torch.randn(num, 4, generator=generator, dtype=torch.float64)
        return self.means[torch.arange(num) % 3] + z[:, :2] @ self.weight.T + self.scale * z[:, 2:]


def test_m2_with_the_exact_conditional_posterior_is_exact_on_every_draw():
    """Whatever q(y|x): evidence sums over y without it."""
    m2 = M2()
    x = m2.draw(7)
    terms = EnumeratedDraws(m2.model, m2.guide, (x,), {})(5)
    torch.testing.assert_close(terms.log_w, m2.joint(x).logsumexp(1).expand(5, 7))
    elbo = (m2.guess * (m2.joint(x) - m2.guess.log())).sum(1)
    torch.testing.assert_close(terms.log_likelihood + terms.log_ratio, elbo.expand(5, 7))


def test_m2_with_a_wrong_guide_is_unbiased():
    m2 = M2(shift=0.4, stretch=1.3)
    x, num = m2.draw(6), 20_000
    terms = EnumeratedDraws(m2.model, m2.guide, (x,), {})(num)
    exact = m2.joint(x).logsumexp(1)
    relative = (terms.log_w - exact).exp()
    assert within(relative.mean(0), 1.0, relative.std(0) / math.sqrt(num))
    sampled = terms.log_likelihood + terms.log_ratio
    elbo = (m2.guess * (m2.joint(x) - m2.guess.log())).sum(1) - m2.kl()
    assert within(sampled.mean(0), elbo, sampled.std(0) / math.sqrt(num))
    assert bool((sampled <= terms.log_w).all())
    # The rate in closed form: KL(q(y) || p(y)) + sum over y of q(y) KL(q(z|x, y) || p(z)).
    prior = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    kls = torch.distributions.kl_divergence(m2.q(x[:, None], torch.eye(3, dtype=torch.float64)), prior)
    rate = (m2.guess * (m2.guess / m2.probs).log()).sum() + (m2.guess * kls).sum(1)
    assert within(-terms.log_ratio.mean(0), rate, terms.log_ratio.std(0) / math.sqrt(num))


def test_draws_of_each_value_are_their_own():
    m2 = M2(shift=0.4, stretch=1.3)
    sites = {}
    guide = poutine.trace(m2.guide)
    draws = EnumeratedDraws(m2.model, guide, (m2.draw(4),), {})
    draws(5)
    sites = draws._traces(5).guide.nodes
    assert sites["z"]["value"].shape == (3, 5, 4, 2)
    assert len(sites["z"]["value"].unique()) == 3 * 5 * 4 * 2


def test_m2_enumerated_in_the_model():
    """q(z|x) knows no y, so p(x|z) is the mixture over y, drawn z by z."""
    m2 = M2(stretch=3.0, by_model=True)
    x, num = m2.draw(5), 40_000
    terms = EnumeratedDraws(m2.model, m2.guide, (x,), {})(num)
    torch.testing.assert_close(terms.log_w, terms.log_likelihood + terms.log_ratio)
    relative = (terms.log_w - m2.joint(x).logsumexp(1)).exp()
    assert within(relative.mean(0), 1.0, relative.std(0) / math.sqrt(num))
    prior = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    rate = torch.distributions.kl_divergence(m2.q(x, torch.eye(3, dtype=torch.float64)[1]), prior)
    assert within(-terms.log_ratio.mean(0), rate, terms.log_ratio.std(0) / math.sqrt(num))


def test_a_known_label_counts_once():
    """A batch that mixes known labels and unknown ones (-1): log p(x, y) of the first, log p(x) of the others."""
    m2 = M2()
    x, labels = m2.draw(6), torch.tensor([0, -1, 2, -1, 1, 0])
    guide = config_enumerate(m2.guide)  # Pyro drops the mark of a site with obs_mask
    terms = EnumeratedDraws(m2.model, guide, (x, labels), {})(4)
    joint = m2.joint(x)
    exact = torch.where(labels >= 0, joint.gather(1, labels.clamp(min=0)[:, None])[:, 0], joint.logsumexp(1))
    torch.testing.assert_close(terms.log_w, exact.expand(4, 6))
    free = (m2.guess * (joint - m2.guess.log())).sum(1)
    elbo = torch.where(labels >= 0, exact, free)
    torch.testing.assert_close((terms.log_likelihood + terms.log_ratio)[0], elbo)


def test_a_prior_that_depends_on_the_summed_site_is_a_mixture():
    """y of p(z|y) enumerated in the model: the rate is that of the mixture prior, the distortion knows no y."""
    locs = torch.tensor([-1.5, 1.5], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.4, 0.6], dtype=torch.float64)), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(locs[y], 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.2))

    x = torch.linspace(-2, 2, 4, dtype=torch.float64)
    draws = EnumeratedDraws(model, guide, (x,), {})
    pair = draws._traces(10)
    z = pair.guide.nodes["z"]["value"]
    terms = draws._sums(pair, 10)
    prior = torch.logsumexp(torch.tensor([0.4, 0.6]).double().log() + dist.Normal(locs, 0.5).log_prob(z[..., None]), -1)
    torch.testing.assert_close(terms.log_ratio, prior - dist.Normal(0.5 * x, 1.2).log_prob(z))
    torch.testing.assert_close(terms.log_likelihood, dist.Normal(z, 1.0).log_prob(x))
    torch.testing.assert_close(terms.log_w, terms.log_likelihood + terms.log_ratio)


def test_a_subsample_stays():
    """A plate that takes 3 of 9 rows takes the same at every call."""
    m2 = M2()
    x = m2.draw(9)

    def model(x):
        with pyro.plate("data", 9, subsample_size=3) as rows:
            y = pyro.sample("y", dist.OneHotCategorical(m2.probs), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(y @ m2.means + z @ m2.weight.T, m2.scale).to_event(1), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 9, subsample_size=3) as rows:
            y = pyro.sample("y", dist.OneHotCategorical(m2.guess), infer=PARALLEL)
            pyro.sample("z", m2.q(x[rows], y))

    draws = EnumeratedDraws(model, guide, (x,), {})
    rows = draws.fixed.nodes["data"]["value"]
    for terms in (draws.first, draws(2), draws(1)):
        torch.testing.assert_close(terms.log_w, m2.joint(x)[rows].logsumexp(1).expand(len(terms.log_w), 3))


@pytest.mark.slow
def test_chunks_are_compiled_and_estimate_the_same():
    m2 = M2(shift=0.4, stretch=1.3)
    x, captured = m2.draw(5), CapturedDraws()
    estimate = importance_sampling(m2.model, m2.guide, x, num_samples=3000, chunk_rows=7500, compile=captured)
    assert (captured.captures, captured.reason) == (1, None)
    good = estimate.reliable
    assert int(good.sum()) >= 4
    assert within(estimate.log_px[good], m2.joint(x).logsumexp(1)[good], estimate.std_error[good])


def test_gradients_are_those_of_the_exact_sum():
    logits = torch.tensor([0.1, -0.3, 0.4], dtype=torch.float64, requires_grad=True)
    m2 = M2()
    m2.guess = logits.softmax(0)
    x = m2.draw(5)
    terms = EnumeratedDraws(m2.model, m2.guide, (x,), {})(2)
    (ours,) = torch.autograd.grad((terms.log_likelihood + terms.log_ratio).mean(0).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((m2.guess * (m2.joint(x) - m2.guess.log())).sum(), logits)
    torch.testing.assert_close(ours, exact)


def test_a_guide_that_rules_a_value_out_is_no_nan():
    """q(y) = 0: the ELBO leaves the value out, evidence does not."""
    m2 = M2()
    m2.guess = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    x = m2.draw(5)
    terms = EnumeratedDraws(m2.model, m2.guide, (x,), {})(2)
    torch.testing.assert_close(terms.log_w, m2.joint(x).logsumexp(1).expand(2, 5))
    elbo = (0.5 * (m2.joint(x)[:, :2] - math.log(0.5))).sum(1)
    torch.testing.assert_close((terms.log_likelihood + terms.log_ratio)[0], elbo, rtol=0, atol=1e-6)


def test_a_program_that_indexes_from_the_left_is_drawn_one_by_one():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0] + y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))

    x = torch.linspace(-1, 1, 3, dtype=torch.float64)
    draws = EnumeratedDraws(model, guide, (x,), {})
    with pytest.warns(UserWarning, match="drawing one by one instead"):
        # With as many units as data it runs there, and mixes them up.
        terms = draws(500)
    mixture = torch.stack([dist.Normal(float(k), math.sqrt(2)).log_prob(x) for k in (0, 1)])
    exact = (mixture + torch.tensor([0.7, 0.3]).double().log()[:, None]).logsumexp(0)
    relative = (terms.log_w - exact).exp()
    assert within(relative.mean(0), 1.0, relative.std(0) / math.sqrt(500))


def test_the_sites_that_are_enumerated():
    m2 = M2()
    x = m2.draw(2)
    traces = [poutine.trace(program).get_trace(x) for program in (m2.model, m2.guide)]
    assert enumerated_sites(*traces) == ["y"]
    # The model's mark alone is no reason to sum over what the guide draws.
    plain = pyro.poutine.infer_config(m2.guide, lambda site: {"enumerate": None})
    marked = config_enumerate(m2.model)
    traces = [poutine.trace(program).get_trace(x) for program in (marked, plain)]
    assert enumerated_sites(*traces) == []


def _inner(x):
    with pyro.plate("data", len(x), dim=-2):
        with pyro.plate("parts", 2, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer=PARALLEL)
        pyro.sample("x", dist.Normal(y.sum(-1, keepdim=True), 1.0), obs=x[:, None])


def _partly(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3), infer={**PARALLEL, "num_samples": 2})
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def _global(x):
    y = pyro.sample("y", dist.Bernoulli(0.3), infer=PARALLEL)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def _empty(x):
    pass


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (_inner, "enumerated site 'y': expected the data plate only, got plate 'parts' too"),
        (_partly, "enumerated site 'y': the sum needs all values, but num_samples is set"),
        (_global, "latent site 'y': lies outside the data plate"),
    ],
)
def test_what_cannot_be_summed_for_each_datum_is_refused(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        EnumeratedDraws(model, _empty, (torch.zeros(3),), {})


def test_an_auxiliary_site_of_the_guide_is_refused():
    m2 = M2()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Bernoulli(0.5), infer={**PARALLEL, "is_auxiliary": True})
            y = pyro.sample("y", dist.OneHotCategorical(m2.guess), infer=PARALLEL)
            pyro.sample("z", m2.q(x, y))

    with pytest.raises(ValueError, match="enumerated site 'u': missing from the model"):
        EnumeratedDraws(m2.model, guide, (m2.draw(2),), {})


@pytest.mark.parametrize("of_distribution", [True, False])
@pytest.mark.parametrize("of_guide", [True, False])
def test_where_a_mask_leaves_a_site_out_its_values_count_once(of_distribution, of_guide):
    """The mask of the site and that of its distribution: p(x) where it is left out is that of one component."""
    probs, locs = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([-2.0, 0.5, 1.5]).double()
    x, known = torch.tensor([0.3, -1.0, 2.0, 0.7]).double(), torch.tensor([True, False, True, False])

    def y(logits, infer):
        fn = dist.Categorical(logits=logits)
        with poutine.mask(mask=True if of_distribution else ~known):
            return pyro.sample("y", fn.mask(~known) if of_distribution else fn, infer=infer)

    def model(x):
        with pyro.plate("data", len(x)):
            loc = torch.where(known, 1.0, locs[y(probs.log(), {} if of_guide else PARALLEL)])
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            log_px = dist.Normal(locs, 1.25**0.5).log_prob(x[:, None])
            loc = torch.where(known, 1.0, locs[y(probs.log() + log_px, PARALLEL)] if of_guide else 0.0)
            pyro.sample("z", dist.Normal((loc + 4 * x) / 5, 0.2**0.5 if of_guide else 0.8))

    exact = (probs.log() + dist.Normal(locs, 1.25**0.5).log_prob(x[:, None])).logsumexp(1)
    exact = torch.where(known, dist.Normal(1.0, 1.25**0.5).log_prob(x), exact)
    options = {"start": "guide", "num_chains": 100, "num_steps": 5, "seed": 0}
    found = [importance_sampling(model, guide, x, num_samples=2000, seed=0)]
    found += [annealed_importance_sampling(model, guide, x, **options)]
    if of_guide:  # the exact posterior
        torch.testing.assert_close(elbo("enum", max_plate_nesting=1).bound(model, guide, x), exact)
        assert all(torch.allclose(estimate.log_px, exact) for estimate in found)
    else:
        assert all(within(estimate.log_px, exact, estimate.std_error) for estimate in found)
