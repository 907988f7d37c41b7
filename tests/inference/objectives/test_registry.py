"""Rows of the registry: options, a weight of the KL, and the number of draws, for each objective."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch

from pyro_vae import elbo
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference import OBJECTIVES
from pyro_vae.inference.objectives.registry import options_of
from tests.oracles import LinearGaussian

ORACLE = LinearGaussian()
#: Values other than the default, by option.
VALUES = {
    "alpha": 0.5,
    "elbo_weight": 0.25,
    "first_point": 0.1,
    "max_plate_nesting": 3,
    "num_groups": 3,
    "num_particles": 7,
    "partitions": 2,
    "plate": "data",
    "retain_graph": True,
}
#: Options that Pyro alone reads.
OF_PYRO = {
    "max_iarange_nesting",
    "strict_enumeration_warning",
    "ignore_jit_warnings",
    "jit_options",
    "tail_adaptive_beta",
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_option_of_an_objective_is_set(name):
    options = options_of(name)
    assert {"num_particles", "vectorize_particles", "max_plate_nesting", "retain_graph", "plate"} <= {*options}
    values = VALUES | {"vectorize_particles": not elbo(name).vectorize_particles}
    assert {*options} <= {*values, *OF_PYRO}
    for option in {*options} & {*values}:
        assert getattr(elbo(name, **{option: values[option]}), option) == values[option]
        assert getattr(elbo(name), option) != values[option]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_option_that_is_misspelled_is_refused_by_the_class_too(name):
    cls = OBJECTIVES[name]
    sentence = f"^{cls.__name__}: unknown option 'num_particle': expected one of .*; did you mean 'num_particles'"
    for make in (cls, partial(elbo, name)):
        with pytest.raises(TypeError, match=sentence):
            make(num_particle=3)


def test_a_positional_option_does_not_hide_a_misspelled_one():
    with pytest.raises(TypeError, match="^Renyi: unknown option 'num_particle'.*did you mean 'num_particles'"):
        OBJECTIVES["renyi"](0.5, num_particle=8)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_copied_and_pickled(name):
    made = elbo(name, num_particles=3)
    for same in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (type(same), same.num_particles) == (type(made), 3)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")  # Pyro's; there is nothing to sum over here
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_weight_of_the_kl_acts_or_is_refused(name):
    model, guide, x = ORACLE.model, ORACLE.guide(), ORACLE.draw(5)

    def loss(beta):
        torch.manual_seed(0)
        return elbo(name, num_particles=2).loss(*scale_kl_pair(model, guide, beta), x)

    if OBJECTIVES[name].takes_beta:
        assert abs(loss(0.5) - loss(1.0)) > 1e-3
    else:
        with pytest.raises(ValueError, match=f"{name}: this objective has no KL"):
            loss(0.5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_number_of_draws_is_that_of_the_guide(name):
    groups = {"num_groups": 3} if "num_groups" in options_of(name) else {}
    assert elbo(name, num_particles=2, **groups).num_draws == (6 if groups else 2)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="unknown objective 'tracee'.*did you mean 'trace'"):
        elbo("tracee")
    with pytest.raises(TypeError, match="unknown option 'particles'"):
        elbo("trace", particles=3)
    with pytest.raises(ValueError, match="num_particles: expected at least 1, got 0"):
        elbo("trace", num_particles=0)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("iwae", {"alpha": 0.5}, "unknown option 'alpha'"),
        ("trace", {"num_groups": 2}, "unknown option 'num_groups'"),
        ("renyi", {"alpha": math.nan}, "alpha: expected a finite number"),
        ("dreg", {"alpha": math.inf}, "alpha: expected a finite number"),
        ("miwae", {"num_groups": 0}, "num_groups: expected at least 1"),
        ("ciwae", {"elbo_weight": 1.5}, "elbo_weight: expected a share"),
        ("vimco", {"num_particles": 1}, "num_particles: expected at least 2 for vimco"),
        ("rws", {"num_particles": 1}, "num_particles: expected at least 2 for rws"),
        ("tvo", {"partitions": 0}, "partitions: expected at least 1"),
        ("tvo", {"first_point": 1.0}, "first_point: expected a number between 0 and 1"),
        ("iwae", {"num_particles": 0}, "num_particles: expected at least 1"),
        ("miwae", {"num_groups": 1.5}, "num_groups: expected a whole number, got float 1.5"),
        ("piwae", {"num_groups": True}, "num_groups: expected a whole number, got bool True"),
        ("tvo", {"partitions": 2.5}, "partitions: expected a whole number, got float 2.5"),
        ("tvo", {"first_point": None}, "first_point: expected a number between 0 and 1, got NoneType None"),
        ("renyi", {"alpha": "1"}, "alpha: expected a finite number, got str '1'"),
        ("dreg", {"alpha": "1"}, "alpha: expected a finite number, got str '1'"),
        ("ciwae", {"elbo_weight": "half"}, "elbo_weight: expected a share in .0, 1., got str 'half'"),
    ],
)
def test_options_out_of_range(name, options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        elbo(name, **options)
