"""Laws of every model in the registry: a new one is a row in ``MODELS``, and is tested here."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pyro_vae as pv
from pyro_vae.inference.objectives.registry import default_objective
from pyro_vae.models import MODELS, Model
from pyro_vae.models.checks import check_model
from pyro_vae.models.protocol import classifies, has_bound, num_required_arguments, takes
from pyro_vae.models.registry import PARTS, constructor_default, make, model_class
from pyro_vae.runs.build import make_vae
from pyro_vae.runs.config import Config, ModelConfig
from pyro_vae.testing import check_elbo_bounds

ARGUMENTS = {"data_shape": (1, 4, 4), "latent_dim": 2, "hidden": (5,), "activation": "tanh", "num_classes": 3}
#: Some labels are known: what a classifier may be given.
LABELS = torch.tensor([0, 1, -1, 2, -1, -1, 1, -1, 0, 2])


def made(name, seed=0):
    torch.manual_seed(seed)
    return make(name, ARGUMENTS)


def inputs_of(model):
    """Ten binary images, with labels for a model that takes them."""
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    y = LABELS if classifies(model) else LABELS.abs()
    return (x, y)[: len(takes(model))]


@pytest.mark.parametrize("name", MODELS)
def test_it_keeps_the_protocol(name):
    model = made(name)
    check_model(model)
    assert isinstance(model, Model)
    assert type(model) is model_class(name) is MODELS[name]
    assert num_required_arguments(model.model) == num_required_arguments(model.guide) == len(model.takes)


@pytest.mark.parametrize("name", [name for name, cls in MODELS.items() if cls.takes == ("x",) and has_bound(cls)])
def test_its_bound_is_one(name):
    """Models with labels are tested beside their modules, against sums over labels."""
    model = made(name).double().eval()
    (x,) = inputs_of(model)
    assert not check_elbo_bounds(model.model, model.guide, x.double(), num_samples=100).broken


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same(name):
    saved, loaded = made(name), made(name, seed=1)
    objective = pv.elbo(default_objective(saved), max_plate_nesting=1)

    def loss(model):
        torch.manual_seed(2)
        return objective.loss(model.model, model.guide, *inputs_of(model))

    expected, other = loss(saved), loss(loaded)
    loaded.load_state_dict(saved.state_dict())
    assert loss(loaded) == expected != other


@pytest.mark.parametrize("name", MODELS)
def test_its_parts_are_its_own_where_none_is_named(name):
    """Without flags, by flags that name them, and in configurations written before there were flags."""
    default = Config(model=ModelConfig(model=name, latent_dim=2))
    for kind in PARTS:
        own = constructor_default(MODELS[name], kind)
        assert getattr(default.model, kind) == (own or "")
    old = default.to_dict()
    for kind in ("prior", "posterior", "network"):
        del old["model"][kind]
    assert Config.from_dict(old) == default
    classes = 3 if "y" in MODELS[name].takes else None
    models = [
        str(make_vae(dataclasses.replace(c, model=dataclasses.replace(c.model, num_classes=classes)), (1, 4, 4)))
        for c in (default, Config.from_dict(old))
    ]
    assert models[0] == models[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_search_for_unregistered_parts_leaves_training_as_it_is(name, monkeypatch):
    states = []
    for searching in (True, False):
        model = made(name)
        model.register_parameter("unused", torch.nn.Parameter(torch.zeros(2)))  # else there is nothing to look for
        if not searching:
            monkeypatch.setattr("pyro_vae.inference.training.unregistered.check_reached", lambda *args: None)
        pv.fit(model, inputs_of(model), epochs=2, batch_size=5, compile=False, progress=False)
        states.append(model.state_dict())
        monkeypatch.undo()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
