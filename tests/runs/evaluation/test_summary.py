from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE
from pyro_vae.data import Data, Split
from pyro_vae.inference import History
from pyro_vae.models import Model
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.semi_supervised import M2
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from pyro_vae.runs.evaluation.summary import evaluate
from pyro_vae.runs.evaluation.tables import summary_table

CLOCK = {"images_per_second": 100.0, "seconds": 1.0}


@pytest.fixture
def vae():
    """Nearly no information in z: the guide, close to the prior, is a good proposal."""
    torch.manual_seed(1)
    vae = VAE((6,), 2, (5,))
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(0.3)
    return vae


X = (torch.rand(230, 6, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def test_batches_do_not_show_and_the_callers_generator_is_left_alone(vae):
    before = torch.get_rng_state()
    first = estimate(vae, X, Estimation(num_samples=30), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(
        first.log_px, estimate(vae, X, Estimation(num_samples=30), seed=3).log_px, rtol=0, atol=0
    )
    assert len(first.log_px) == 230
    assert first.num_samples == 30
    # An independent estimate from other draws agrees within the errors of both.
    other = estimate(vae, X, Estimation(num_samples=3000), seed=4)
    good = other.reliable
    scale = math.sqrt(100) * other.std_error[good]  # of 30 draws, from 3,000
    assert int(good.sum()) > 200
    assert float(((first.log_px - other.log_px)[good] / scale).square().mean()) == pytest.approx(1.0, abs=0.4)


def _summary(vae, rows, num_samples=50):
    config = Config.from_dict({"evaluate": {"num_samples": num_samples}})
    data = Data("toy", Split(X), None, Split(X[:40]))
    return evaluate(config, vae, data, History(rows), 12.5, progress=False)[0]


def test_it_is_json_and_its_arithmetic_holds(vae):
    rows = [CLOCK | {"validation_elbo": -5.0, "validation_elbo_std_error": math.nan}]
    found = json.loads(json.dumps(_summary(vae, rows), allow_nan=False))
    test = found["test"]
    assert test["gap"] == pytest.approx(test["log_px"]["value"] - test["elbo"]["value"])
    assert test["elbo"]["value"] == pytest.approx(-test["rate"] - test["distortion"])
    assert test["log_px"]["lower_bound_95"] == pytest.approx(test["log_px"]["value"] - math.log(20) / 40)
    assert found["validation"]["elbo"] == {"value": -5.0, "std_error": None}
    assert found["seconds"]["train"] == 12.5
    assert (found["density"], test["num_data"]) == (False, 40)
    assert _summary(vae, [CLOCK])["validation"]["elbo"] is None


def test_the_table_says_what_can_be_trusted(vae):
    few, many = (_summary(vae, [CLOCK], num_samples=k) for k in (20, 2000))
    px = few["test"]["log_px"]
    assert (px["pareto_k_bad"], px["mc_error"], px["mc_error_reliable"]) == (40, None, None)
    words = summary_table(few)
    assert "for 40 of 40 images Pareto k is above 0.23" in words
    assert "unknown" in words
    good = many["test"]["log_px"]
    assert good["pareto_k_bad"] == 0
    assert f"{good['mc_error']:.4f}" in summary_table(many)
    assert "for every image Pareto k is at most 0.70" in summary_table(many)
    assert "log probability, nats per image" in words


class Joint(Model):
    """p(y) p(x|y), with nothing latent but a number that both ignore."""

    takes = ("x", "y")
    num_classes = 3

    def __init__(self):
        super().__init__((6,), 1)
        self.logits = torch.nn.Parameter(torch.zeros(6))

    def model(self, x, y):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=self.logits.expand_as(x)).to_event(1), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Conditional((6,), 2, (5,), num_classes=3), "log p(x|y)"),
        (M2((6,), 2, (5,), num_classes=3), "log p(x)"),
        (Joint(), "log p(x, y)"),
    ],
)
def test_evidence_is_called_what_it_is(model, name):
    data = Data("toy", Split(X, torch.arange(230) % 3), None, Split(X[:40], torch.arange(40) % 3))
    config = Config.from_dict({"evaluate": {"num_samples": 5}})
    found = evaluate(config, model.eval(), data, History([CLOCK]), 1.0, progress=False)[0]
    assert found["evidence_of"] == name
    words = summary_table(found)
    assert f"\n{name:<12}" in words
    assert f"= {name} - ELBO" in words
    assert ("log p(x) " in words) == (name == "log p(x)")
    if name == "log p(x, y)":
        assert found["test"]["log_px"]["value"] == pytest.approx(-6 * math.log(2) - math.log(3), abs=1e-5)
