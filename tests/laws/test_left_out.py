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
from tests.models.semi_supervised.test_semi_supervised import JOINT, joint, marginal, small
from tests.oracles import LinearGaussian, all_binary, within

ORACLE = LinearGaussian()
DOUBLE = {"dtype": torch.float64}
LOCS = torch.tensor([-1.5, 0.0, 2.0], **DOUBLE)


@pytest.mark.parametrize("known", ["none", "half", "all"])
@pytest.mark.parametrize("name", JOINT)
def test_images_and_labels_of_a_semi_supervised_model_are_drawn_from_its_joint(name, known):
    """All 16 images with 3 labels: the frequencies are p(x, y), summed over y and integrated over z."""
    torch.manual_seed(0)
    num, model = 40_000, small(name).eval()
    images, powers = all_binary(4), torch.tensor([8.0, 4.0, 2.0, 1.0], **DOUBLE)
    exact = joint(name, model, images).exp()
    given = {"none": torch.full((num,), -1), "half": torch.arange(num) % 2 - 1, "all": torch.zeros(num).long()}[known]
    (x, y), latents = (out := simulate(model.model, torch.zeros(num, 4, **DOUBLE), given)).args, out.latents
    assert torch.equal(y >= 0, given >= 0)
    assert torch.equal(y[y < 0], given[given < 0])
    label = torch.where(y >= 0, y, latents["y_unobserved"])
    for rows in (y >= 0, y < 0):
        counts = torch.bincount(3 * (x[rows] @ powers).long() + label[rows], minlength=48).reshape(16, 3)
        size = max(1, int(rows.sum()))
        found = counts[(images @ powers).long()] / size
        assert not rows.any() or within(found, exact, (exact * (1 - exact) / size).sqrt())
    assert "y_observed" not in latents


@pytest.mark.parametrize("name", ["M2", pytest.param("ADGM", marks=pytest.mark.slow)])
def test_the_bracket_of_partly_labelled_images(name):
    """log p(x, y) where y is known, log p(x) elsewhere, by quadrature."""
    model, given = small(name).eval(), torch.arange(60) % 2 - 1
    words = {"num_chains": 10, "num_steps": 30, "start": "guide", "seed": 0}
    found = bidirectional(model.model, model.guide, torch.zeros(60, 4, **DOUBLE), given, **words)
    x, y = found.args
    exact = marginal(joint(name, model, x), y).detach()
    for bound, sign in ((found.lower.log_px, 1), (found.upper.log_px, -1)):
        short = sign * (exact - bound)
        assert -4 * float(short.std()) / math.sqrt(60) < float(short.mean()) < 0.1
    assert torch.equal(y >= 0, given >= 0)


@pytest.mark.parametrize("place", ["handler", "distribution"])
def test_the_bracket_holds_log_px_of_the_observed_sites_alone(place):
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


def with_a_sign(x, y):
    """z ~ N(0, 1), x ~ N(z, 0.7^2), and y a coin, known where it is not -1."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)
        with poutine.mask(mask=y >= 0):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, **DOUBLE), validate_args=False), obs=y)


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_calibration_sees_the_data_whose_label_is_unknown(off):
    """The posterior, save that the mean of what has no label is moved by ``off``."""

    def guide(x, y):
        precision = 1 + 1 / 0.49
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 0.49 / precision + torch.where(y >= 0, 0.0, off), precision**-0.5))

    x, y = torch.zeros(200, **DOUBLE), torch.arange(200.0, **DOUBLE) % 2 - 1
    found = calibrate(with_a_sign, guide, x, y, num_simulations=1000, num_draws=19, seed=0)
    assert found.passed == (off == 0.0)
    assert off == 0.0 or "z" in found.failures


def through_a_mask(place):
    def model(x, mask=None):
        mask = x >= 0 if mask is None else mask
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), **DOUBLE), 1.0))
            fn = dist.Normal(z[:, None], torch.full((1, 3), 0.7, **DOUBLE))
            if place == "distribution":
                pyro.sample("x", fn.mask(mask).to_event(1), obs=x)
            else:
                with poutine.mask(mask=mask[:, 0]):
                    pyro.sample("x", fn.to_event(1), obs=x)

    return model


@pytest.mark.parametrize("place", ["distribution", "handler"])
@pytest.mark.parametrize("data", [torch.ones(40, 3, **DOUBLE), torch.arange(120.0, **DOUBLE).reshape(40, 3) % 2 - 1])
def test_a_mask_made_of_the_data_is_refused(place, data):
    """-1 is missing, but z and x may be negative: the simulated data would be of another model."""
    with pytest.raises(ValueError, match="site 'x': expected a fixed mask, .* pass the mask as an argument"):
        simulate(through_a_mask(place), data)


@pytest.mark.parametrize("place", ["distribution", "handler"])
def test_a_mask_that_is_an_argument_keeps_what_it_leaves_out(place):
    torch.manual_seed(0)
    num, mask = 20_000, torch.tensor([True, False, True])
    mask = (mask if place == "distribution" else mask[torch.arange(num) % 3, None]).expand(num, 3)
    x, again = simulate(through_a_mask(place), torch.full((num, 3), 7.0, **DOUBLE), mask).args
    assert again is mask
    assert torch.equal(x[~mask], torch.full_like(x[~mask], 7.0))
    assert within(x[mask].mean(), 0.0, math.sqrt(1.49 / num))


def test_a_model_without_observed_sites_is_refused():
    with pytest.raises(ValueError, match=r"observed site, got only fully masked sites \['given', 'x'\]"):
        simulate(poutine.mask(labelled, mask=False), torch.zeros(3, **DOUBLE), torch.full((3,), -1))


def test_a_mask_that_depends_on_draws_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with poutine.mask(mask=x > 0):
                pyro.sample("sign", dist.Normal(z, 1.0), obs=2 * x)

    with pytest.raises(ValueError, match="site 'sign': expected a fixed mask"):
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
