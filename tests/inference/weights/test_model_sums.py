r"""A site that the model alone enumerates is summed out of it in training, validation and evaluation, against closed forms.

A mixture :math:`p(x) = \sum_y \pi_y p(x|y)` of normals: alone, and with a z between y and x that has a guide, where y has none.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import nn

import pyro_vae as pv
from pyro_vae import report, train
from pyro_vae.data import Data, Split
from pyro_vae.inference.training.validation import evaluate_terms
from tests.oracles import within

SOURCE = '''
import numpy
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Mixture(nn.Module):
    """Pixels that come from one of three images, of which no guide says which."""

    objective = "enum"

    def __init__(self, data_shape, latent_dim=1):
        super().__init__()
        self.logits, self.images = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(3, 64))
        self.up, self.down = nn.Linear(64, 2 * latent_dim), nn.Linear(latent_dim, 64)

    def model(self, x):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros(self.down.in_features), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.images[y] + self.down(z)).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.up(x.flatten(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
'''


class Discrete(nn.Module):
    """The mixture of three normals with no other latent site: every bound is log p(x)."""

    objective = "enum"

    def __init__(self):
        super().__init__()
        self.logits, self.locs = (
            nn.Parameter(torch.tensor([0.1, 0.5, -0.3])),
            nn.Parameter(torch.tensor([-2.0, 0.5, 3.0])),
        )

    def model(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.locs[y][..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        """It has nothing to draw."""

    def log_px(self, x):
        return (self.logits.log_softmax(0) + dist.Normal(self.locs, 1.0).log_prob(x)).logsumexp(-1)


class Continuous(Discrete):
    """The same with z ~ N(mu_y, 1), x ~ N(z, 1), and a guide of z, N(x/2, 1/2), that knows nothing of y."""

    def model(self, x):
        pyro.module("continuous", self)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.locs[y], 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("continuous", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, math.sqrt(0.5)))

    def elbo(self, x, points=100):
        """By Gauss-Hermite quadrature over z, the sum over y inside: E_q[log sum_y p(y) p(z|y) p(x|z) - log q(z|x)]."""
        nodes, weights = map(torch.as_tensor, numpy.polynomial.hermite_e.hermegauss(points))
        q = dist.Normal(x / 2, math.sqrt(0.5))
        z = q.mean + nodes * q.stddev
        prior = (self.logits.log_softmax(0) + dist.Normal(self.locs, 1.0).log_prob(z[..., None])).logsumexp(-1)
        values = prior + dist.Normal(z, 1.0).log_prob(x) - q.log_prob(z)
        return (values * weights).sum(-1) / weights.sum()


def data(count: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_validation_elbo_is_the_exact_sum():
    model, x = Discrete().double(), data(50)
    likelihood, ratio = evaluate_terms(model, x, seed=0)
    torch.testing.assert_close(likelihood + ratio, model.log_px(x).detach())
    torch.testing.assert_close(ratio, torch.zeros(50, dtype=torch.float64))


def test_beside_a_site_that_is_drawn_it_averages_to_the_elbo():
    model, x = Continuous().double(), data(4)
    columns = x.repeat(5000, 1)
    values = sum(evaluate_terms(model, columns, seed=0)).reshape(5000, 4)
    error = values.std(0) / math.sqrt(5000)
    assert bool(((values.mean(0) - model.elbo(x).detach()).abs() < 4 * error).all())
    assert bool((error < 0.02).all())


def test_fit_reaches_the_maximum_of_the_likelihood_and_says_its_elbo():
    """What it says of the best epoch is the mean log p(x), in closed form, under the parameters that it kept."""
    torch.manual_seed(0)
    model, x = Discrete().double(), data(200)
    history = pv.fit(
        model, Data("normals", Split(x), Split(x)), epochs=15, batch_size=50, lr=0.05, compile=False, progress=False
    )
    kept = model.log_px(x).mean().item()
    assert max(history["validation_elbo"]) == pytest.approx(kept, rel=1e-9)
    assert kept > Discrete().double().log_px(x).mean().item() + 0.02
    estimate = pv.evidence.importance_sampling(model.model, model.guide, x, num_samples=2)
    torch.testing.assert_close(estimate.log_px, model.log_px(x).detach())


@pytest.mark.parametrize("others", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_site_with_a_single_value_is_summed_too(others, first):
    """Beside another site with ``others`` values, drawn before it or after it."""
    probs, locs, x = torch.arange(1.0, 1 + others), torch.linspace(-1, 2, 3)[:others], torch.linspace(-2, 2, 4)

    def site(name, probs):
        return pyro.sample(name, dist.Categorical(probs), infer={"enumerate": "parallel"})

    def model(x):
        with pyro.plate("data", len(x)):
            one = site("one", torch.ones(1)) if first else None
            other = site("other", probs)
            one = site("one", torch.ones(1)) if one is None else one
            pyro.sample("x", dist.Normal(locs[other] + one, 1.0), obs=x)

    exact = ((probs / probs.sum()).log() + dist.Normal(locs, 1.0).log_prob(x[:, None])).logsumexp(1)
    objective = pv.elbo("enum", max_plate_nesting=1)
    torch.testing.assert_close(objective.bound(model, lambda x: None, x), exact)
    torch.testing.assert_close(objective.terms(model, lambda x: None, x).loss, -exact.sum())


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")  # Pyro's, which would go on
@pytest.mark.parametrize("name", ["trace", "graph", "mean-field", "iwae"])
def test_an_objective_that_does_not_sum_refuses_it_and_says_how_to_mend_it(name):
    x = data(10)
    with pytest.raises(ValueError, match="latent site 'y': missing from the guide, .* or use elbo enum"):
        pv.fit(Continuous().double(), x, elbo=name, epochs=1, compile=False, progress=False)


def test_what_does_not_sum_says_what_does():
    model, x = Continuous(), data(5).float()
    sentence = "latent site 'y': missing from the guide, and marked for enumeration in the model; add the site to the"
    for estimate in (pv.evidence.calibrate, pv.evidence.aggregate_posterior):
        with pytest.raises(ValueError, match=f"{sentence} guide, or use elbo enum, importance_s"):
            estimate(model.model, model.guide, x)
    with pytest.raises(ValueError, match=r"all latent sites are summed out: \['y'\]; use importance_sampling"):
        pv.evidence.annealed_importance_sampling(Discrete().model, Discrete().guide, x)


def obs_mask_program(x, label=None):
    """Pyro drops the ``infer=`` of this label."""
    with pyro.plate("data", len(x)):
        known = torch.zeros(len(x), dtype=torch.bool)
        y = pyro.sample(
            "y", dist.Categorical(torch.ones(3)), obs=known.long(), obs_mask=known, infer={"enumerate": "parallel"}
        )
        z = pyro.sample("z", dist.Normal(1.0 * y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_site_of_obs_mask_is_to_be_marked_by_config_enumerate():
    x, sentence = (
        data(5).float()[:, 0],
        "latent site 'y_unobserved': (missing|expected) .* mark it with pyro.infer.config_enumerate",
    )
    calls = [pv.elbo(name, max_plate_nesting=1).loss for name in ("enum", "trace")]
    calls += [pv.evidence.importance_sampling, pv.evidence.calibrate]
    for call in calls:
        with pytest.raises(ValueError, match=sentence):
            call(obs_mask_program, guide_of_z, x)
    with pytest.raises(ValueError, match=sentence):
        pv.evidence.annealed_importance_sampling(obs_mask_program, None, x, start="prior")
    marked = config_enumerate(obs_mask_program)
    exact = (dist.Normal(torch.arange(3.0), 2**0.5).log_prob(x[:, None]) - math.log(3)).logsumexp(1)
    estimate = pv.evidence.importance_sampling(marked, guide_of_z, x, num_samples=5000, seed=0)
    assert within(estimate.log_px, exact, estimate.std_error)


@pytest.fixture
def mixture(tmp_path, monkeypatch):
    (tmp_path / "mixture.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(report, "draw_pictures", lambda *args: [])
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    sys.modules.pop("mixture", None)


def test_the_command_trains_evaluates_and_resumes_it(mixture, capsys):
    words = "--device cpu --threads 1 --quiet".split()
    new = [*words, *"--model mixture:Mixture --binarize threshold --num-samples 5 --run-dir run".split()]
    assert train.main([*new, "--epochs", "1"]) == 0
    assert train.main(["--resume", "run", "--epochs", "2", *words]) == 0
    run = pv.load("run")
    assert run.config.train.elbo == "enum"
    assert run.history["validation_elbo"][1] > run.history["validation_elbo"][0]
    capsys.readouterr()
    assert train.main([*new, "--epochs", "1", "--elbo", "trace", "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "latent site 'y': missing from the guide" in error
    assert "or use elbo enum" in error
    assert Path("run/checkpoint.pt").exists()
