from __future__ import annotations

import pyro
import pytest
import torch

from pyro_vae.testing import BrokenBound, check_elbo_bounds
from tests.testing.sound import SOUND
from tests.testing.toy import Toy

#: The models of the false-alarm count, ten with all kinds of sites.
COUNTED = ("wrong_guide", "narrow_guide", "package_vae", "two_layers", "discrete", "subsampled", "conditional")
COUNTED += ("fractions", "labels", "heavy_tails")


#: Those that are like another one; make test-all runs them.
ALIKE = {
    "wrong_guide",
    "narrow_guide",
    "fractions",
    "masked",
    "weighted_kl",
    "heavy_tails",
    "exact_posterior",
    "minibatch",
    "auto_normal_gamma",
    "sequence",
    "zero_inflated",
    "auto_normal_lognormal",
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in SOUND])
def test_a_sound_model_passes(name):
    case = SOUND[name]()
    report = check_elbo_bounds(case.model, case.guide, *case.args, num_samples=100, **case.options)
    assert report.laws["structure"] == report.laws["kl"] == "held"
    assert report.broken == ()


@pytest.mark.slow
def test_false_alarms_of_two_thousand_calls():
    """2 are expected at a rate of 1e-3; 8 or more have a chance of 1e-3."""
    alarms = []
    for name in COUNTED:
        for seed in range(200):
            pyro.clear_param_store()
            case = SOUND[name]()
            try:
                check_elbo_bounds(case.model, case.guide, *case.args, seed=seed, **case.options)
            except BrokenBound as error:
                alarms.append((name, seed, str(error)))
    assert len(alarms) <= 7, alarms


@pytest.mark.parametrize("name", ["sequence", "zero_inflated", "two_likelihoods"])
def test_data_in_slices_and_at_masked_sites_are_simulated(name):
    case = SOUND[name]()
    report = check_elbo_bounds(case.model, case.guide, *case.args, num_samples=100)
    expected = "not checked" if name == "two_likelihoods" else "held"  # of a masked site nothing is drawn
    assert report.laws["posterior"] == expected


def test_laws_that_cannot_be_checked_are_reported():
    case = SOUND["closure"]()
    report = check_elbo_bounds(case.model, case.guide)
    assert report.laws["posterior"] == "not checked"
    said = " ".join(map(str, report.not_checked))
    assert "name the data argument by data=" in said
    assert "pass factory=" in said
    assert "exact= was not given" in said
    assert all(str(finding) in str(report) for finding in report.not_checked)


def test_nothing_is_left_behind():
    toy = Toy()
    x = toy.data()[0]
    store, state = pyro.get_param_store(), torch.get_rng_state()
    kept = pyro.param("kept", torch.ones(2))
    before = {n: p.detach().clone() for n, p in toy.named_parameters()}
    check_elbo_bounds(toy.model, toy.guide, x)
    assert list(store.keys()) == ["kept"]
    assert pyro.param("kept").unconstrained() is kept.unconstrained()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in toy.named_parameters())


def test_the_same_seed_gives_the_same_figures_and_another_others():
    case = SOUND["two_layers"]()
    texts = [
        str(check_elbo_bounds(case.model, case.guide, *case.args, seed=seed, num_samples=100)) for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_trained_parameters_are_checked_as_they_are():
    """The store's values, not the initial ones: a scale that training drove to NaN is reported."""
    case = SOUND["two_layers"]()
    check_elbo_bounds(case.model, case.guide, *case.args)
    case.guide(*case.args)
    pyro.param("weight").data.fill_(torch.nan)
    with pytest.raises(BrokenBound, match="NaN"):
        check_elbo_bounds(case.model, case.guide, *case.args)


@pytest.mark.parametrize("data", [0, "x"])
def test_data_may_be_named(data):
    toy = Toy()
    x = toy.data()[0]
    args, kwargs = ((x,), {}) if data == 0 else ((), {"x": x})
    assert check_elbo_bounds(toy.model, toy.guide, *args, data=data, **kwargs).laws["posterior"] == "held"
    with pytest.raises(ValueError, match="unknown data argument 'y'"):
        check_elbo_bounds(toy.model, toy.guide, x, data="y")


class Autoregressive(Toy):
    """p(x_d | x_<d, z) with bits, sound; the likelihood reads its data."""

    def data(self):
        return ((super().data()[0] > 0).float(),)

    def likelihood(self, loc, x):
        shifted = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
        return pyro.distributions.Bernoulli(logits=loc + shifted).to_event(1)


class AutoregressiveNormal(Toy):
    def likelihood(self, loc, x):
        shifted = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
        return pyro.distributions.Normal(loc + 0.5 * shifted, 0.8).to_event(1)


class DataPrior(Toy):
    def prior(self, x):
        return pyro.distributions.Normal(0.3 * x[..., :2], 1.0).to_event(1)


def test_an_autoregressive_likelihood_is_summed_over_all_data():
    toy = Autoregressive()
    report = check_elbo_bounds(toy.model, toy.guide, *toy.data())
    assert "as an autoregressive site does" in str(report)
    assert report.laws["posterior"] == "not checked"  # its draws are not from its density


@pytest.mark.parametrize(("kind", "site"), [(AutoregressiveNormal, "x"), (DataPrior, "z")])
def test_what_reads_its_data_passes_when_declared(kind, site):
    toy = kind()
    with pytest.raises(BrokenBound, match=rf"site '{site}' of the model.*conditional="):
        check_elbo_bounds(toy.model, toy.guide, *toy.data())
    check_elbo_bounds(toy.model, toy.guide, *toy.data(), conditional=[site])


def test_a_parameter_without_gradient_passes_when_declared():
    toy = Toy()
    toy.spare = torch.nn.Linear(2, 2)

    def model(x):
        toy.register("spare")
        toy.model(x)

    with pytest.raises(BrokenBound, match="spare"):
        check_elbo_bounds(model, toy.guide, *toy.data())
    check_elbo_bounds(model, toy.guide, *toy.data(), without_gradient=["spare"])


def test_a_layer_that_starts_at_zero_hides_no_gradient():
    toy = Toy()
    toy.decoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    for parameter in toy.decoder[2].parameters():
        parameter.data.zero_()
    assert check_elbo_bounds(toy.model, toy.guide, *toy.data()).broken == ()


def _fresh():
    toy = Toy()
    return toy.model, toy.guide


def _shared(toy=Toy()):  # noqa: B008
    return toy.model, toy.guide


def test_a_factory_makes_the_second_instance():
    model, guide = _fresh()
    x = Toy().data()[0]
    functions = (lambda x: model(x)), (lambda x: guide(x))
    assert check_elbo_bounds(*functions, x, factory=_fresh).laws["instances"] == "held"
    with pytest.raises(BrokenBound, match="law 'instances'"):
        check_elbo_bounds(*_shared(), x, factory=_shared)


def test_one_datum_is_checked_as_far_as_it_goes():
    toy = Toy()
    report = check_elbo_bounds(toy.model, toy.guide, toy.data()[0][:1])
    assert report.laws["independence"] == "not checked"
    assert report.laws["kl"] == "held"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_samples": 10}, "at least 100, got 10"), ({"false_alarms": 0.0}, "between 0 and 1, got 0.0")],
)
def test_options_without_sense_are_refused(options, message):
    toy = Toy()
    with pytest.raises(ValueError, match=message):
        check_elbo_bounds(toy.model, toy.guide, *toy.data(), **options)


def test_enumerated_sites_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="remove the mark"):
        check_elbo_bounds(model, lambda x: None, torch.zeros(3))


def test_guide_side_enumeration_is_sampled():
    case = SOUND["discrete"]()
    guide = pyro.infer.config_enumerate(case.guide)
    assert check_elbo_bounds(case.model, guide, *case.args, num_samples=100).laws["posterior"] == "held"


def test_a_guide_over_all_data_at_once_is_refused():
    model = SOUND["auto_normal"]().model
    with pytest.raises(ValueError, match="use AutoNormal"):
        check_elbo_bounds(model, pyro.infer.autoguide.AutoDiagonalNormal(model), torch.zeros(3))


def test_missing_data_may_be_nan():
    case = SOUND["masked"]()
    x, mask = case.args
    report = check_elbo_bounds(case.model, case.guide, torch.where(mask, x, torch.nan), mask, num_samples=100)
    assert report.laws["independence"] == "held"
