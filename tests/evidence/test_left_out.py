"""Observed sites that a mask leaves out whole are no observation: against exact sums over y and quadratures over z."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.evidence import bidirectional, calibrate, predictive_checks, simulate, simulations
from tests.models.test_semi_supervised import JOINT, joint, small
from tests.oracles import LinearGaussian, all_binary, within

ORACLE = LinearGaussian()
DOUBLE = {"dtype": torch.float64}
LOCS = torch.tensor([-1.5, 0.0, 2.0], **DOUBLE)


@pytest.mark.parametrize("name", JOINT)
def test_images_and_labels_of_a_semi_supervised_model_are_drawn_from_its_joint(name):
    """All 16 images with 3 labels: the frequencies are p(x, y), summed over y and integrated over z."""
    torch.manual_seed(0)
    num, model = 40_000, small(name).eval()
    images = all_binary(4)
    exact = joint(name, model, images).exp()
    unknown = torch.full((num,), -1)
    (x, y), latents = (out := simulate(model.model, torch.zeros(num, 4, **DOUBLE), unknown)).args, out.latents
    assert torch.equal(y, unknown)
    cells = 3 * (x @ torch.tensor([8.0, 4.0, 2.0, 1.0], **DOUBLE)).long() + latents["y_unobserved"]
    order = (images @ torch.tensor([8.0, 4.0, 2.0, 1.0], **DOUBLE)).long()
    counts = torch.bincount(cells, minlength=48).reshape(16, 3)[order] / num
    assert within(counts, exact, (exact * (1 - exact) / num).sqrt())
    assert "y_observed" not in latents


@pytest.mark.parametrize("place", ["handler", "distribution"])
def test_the_bracket_holds_log_px_of_the_observed_alone(place):
    def model(x, label):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ ORACLE.weight.T + ORACLE.bias, ORACLE.scale).to_event(1), obs=x)
            fn = dist.Normal(torch.zeros(len(x), **DOUBLE), 1.0)
            with poutine.mask(mask=label > 0) if place == "handler" else nullcontext():
                pyro.sample("label", fn if place == "handler" else fn.mask(False), obs=label + 3.0)

    torch.manual_seed(0)
    x, label = torch.zeros(40, 5, **DOUBLE), torch.zeros(40, **DOUBLE)
    words = {"num_chains": 4, "num_steps": 30, "start": "guide", "seed": 1}
    found = bidirectional(model, lambda x, label: ORACLE.guide(0.3, 1.2)(x), x, label, **words)
    exact = ORACLE.log_px(found.args[0])
    assert torch.equal(found.args[1], label)
    for bound, sign in ((found.lower.log_px, 1), (found.upper.log_px, -1)):
        short = sign * (exact - bound)
        assert float(short.mean()) > -4 * float(short.std()) / math.sqrt(40)
    assert float(found.gap.mean()) < 0.1  # the site's own log density is below -5 nats


def labelled(x, y):
    """p(y) = 1/3, z ~ N(0, 1), x ~ N(z + m_y, 1); y is known where it is not -1, as ``obs_mask`` would have it."""
    with pyro.plate("data", len(x)):
        drawn = pyro.sample("drawn", dist.Categorical(logits=torch.zeros(3, **DOUBLE)))
        with poutine.mask(mask=y >= 0):
            given = pyro.sample("given", dist.Categorical(logits=torch.zeros(3, **DOUBLE)), obs=y.clamp(min=0))
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), **DOUBLE), 1.0))
        pyro.sample("x", dist.Normal(z + LOCS[torch.where(y >= 0, given, drawn)], 1.0), obs=x)


def labelled_guide(flat, shift):
    """The posterior p(y|x) p(z|x, y), in closed form, at ``flat`` and ``shift`` of 0; else a label or z that is wrong."""

    def guide(x, y):
        logits = dist.Normal(LOCS, math.sqrt(2)).log_prob(x[:, None]) * (1 - flat)
        with pyro.plate("data", len(x)):
            drawn = pyro.sample("drawn", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal((x - LOCS[drawn]) / 2 + shift, math.sqrt(0.5)))

    return guide


@pytest.mark.parametrize(("flat", "shift", "failed"), [(0.0, 0.0, None), (0.8, 0.0, "log p(x, z)"), (0.0, 0.4, "z")])
def test_calibration_of_a_guide_over_unknown_labels(flat, shift, failed):
    x, y = torch.zeros(250, **DOUBLE), torch.full((250,), -1)
    found = calibrate(labelled, labelled_guide(flat, shift), x, y, seed=0)
    assert found.names == ("drawn", "z", "log p(x, z)", "log q(z|x)")
    assert found.passed == (failed is None)
    assert failed is None or failed in found.failures


def test_labels_known_in_part_are_refused():
    """Their site is an observation, and its value no argument."""
    y = torch.tensor([0, -1, 2])
    with pytest.raises(ValueError, match="site 'given': expected an observed value that is an argument, got another"):
        simulate(labelled, torch.zeros(3, **DOUBLE), y)


def test_a_model_of_which_nothing_is_observed_is_refused():
    with pytest.raises(ValueError, match=r"observed site, got \['given', 'x'\] with a mask that leaves out all"):
        simulate(poutine.mask(labelled, mask=False), torch.zeros(3, **DOUBLE), torch.full((3,), -1))


def test_a_mask_that_depends_on_draws_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with poutine.mask(mask=x > 0):
                pyro.sample("sign", dist.Normal(z, 1.0), obs=2 * x)

    with pytest.raises(ValueError, match="site 'sign': expected the same mask whatever is drawn"):
        simulate(model, torch.zeros(50, **DOUBLE))


def test_images_are_made_of_the_labels_that_are_given():
    """A model of what it is told: all images white where y is 1, all black where it is 0."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            logits = (100.0 * (2 * y - 1))[:, None, None].expand(-1, 4, 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    y = (torch.arange(1500) % 3 == 0).long()
    x = y.float()[:, None, None].expand(-1, 4, 4).contiguous()
    made = simulations(model, x, y)
    assert torch.equal(made(), x)
    assert predictive_checks(x, made, num_sets=20, level=0.01).p_values["ink"] == 0.5  # all the same: ties
