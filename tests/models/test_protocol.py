"""What a model must offer, said in one sentence where it does not; models by name and by path."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.data import Data, Split
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.models.checks import as_data, check_inputs, check_model
from pyro_vae.models.protocol import (
    call_with_inputs,
    evaluation_inputs,
    has_density,
    training_inputs,
)
from pyro_vae.models.registry import constructor_options, make, model_class, read_options

MODULE = """
import torch
from torch import nn
from pyro_vae import VAE
from pyro_vae.networks import MLP

class Mine(VAE):
    def __init__(self, data_shape, latent_dim, *, depth=1, **options):
        super().__init__(data_shape, latent_dim, (8,) * depth, **options)
        self.depth = depth

class Narrow(nn.Module):
    def __init__(self, in_shape, out_shape, hidden, activation):
        super().__init__()
        self.inner = MLP(in_shape, out_shape, (3,), "relu")

    def forward(self, x):
        return self.inner(x)

class Guideless(nn.Module):
    def model(self, x): ...

class Shapeless(nn.Module):
    def __init__(self, size): ...
    def model(self, x): ...
    def guide(self, x): ...

class Needy(VAE):
    def __init__(self, data_shape, depth): ...

function = len
"""


class Labelled(nn.Module):
    takes = ("x", "y")
    num_classes = 3

    def model(self, x, y): ...

    def guide(self, x, y): ...


class Classifier(Labelled):
    def classify(self, x):
        return torch.eye(3)[x[:, 0].long()]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (type("A", (), {}), "A: expected a torch.nn.Module, got A; subclass nn.Module"),
        (type("A", (nn.Module,), {"takes": ("y",)}), r"A.takes: expected \('x',\) or \('x', 'y'\), got \('y',\)"),
        (type("A", (nn.Module,), {}), r"A.model: expected a Pyro function of x, got none; write model\(self, x\)"),
        (
            type("A", (Labelled,), {"guide": lambda self, x: None}),
            r"A.guide: expected a function of x, y, the inputs in `takes`, got guide\(x\); change guide or `takes`",
        ),
    ],
)
def test_a_class_that_lacks_a_part_is_refused(cls, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence) as caught:
        check_model(cls())
    assert "\n" not in str(caught.value)


def test_columns_that_do_not_fit_are_refused_by_fit():
    x = torch.rand(4, 2)
    with pytest.raises(ValueError, match=r"data: expected x and y for Labelled, got 1 tensor; pass the tuple \(x, y\)"):
        fit(Labelled(), x, progress=False)
    with pytest.raises(ValueError, match="data: expected x for VAE, got 2 tensors; pass one tensor"):
        fit(VAE((2,), 1), (x, torch.zeros(4).long()), progress=False)
    with pytest.raises(ValueError, match="inputs: expected the same number of rows in each input, got 4, 3"):
        fit(Labelled(), (x, torch.zeros(3).long()), progress=False)
    with pytest.raises(ValueError, match="from 0 to 2, or -1 for unknown, got 7 in row 1"):
        fit(Labelled(), (x, torch.tensor([0, 7, 1, 2])), progress=False)
    with pytest.raises(ValueError, match=r"this model needs a label for every datum, but row 2 has none \(-1\)"):
        fit(Labelled(), (x, torch.tensor([0, 1, -1, 2])), progress=False)
    with pytest.raises(ValueError, match="labels: Labelled needs labels, but the test data have none"):
        check_inputs(Labelled(), Data("toy", Split(x, torch.zeros(4).long()), test=Split(x)))


def test_a_model_that_classifies_is_asked_without_labels():
    split = Split(torch.rand(3, 2), torch.tensor([0, 2, 1]))
    assert (
        training_inputs(Classifier(), split)[:][1].tolist()
        == evaluation_inputs(Labelled(), split)[:][1].tolist()
        == [0, 2, 1]
    )
    assert evaluation_inputs(Classifier(), split)[:][1].tolist() == [-1, -1, -1]
    assert as_data(Classifier(), tuple(split)).train.y is split.y


def test_methods_get_the_columns_that_they_need():
    columns = (torch.tensor([1.0]), torch.tensor([5]))
    assert call_with_inputs(lambda x: x, columns) is columns[0]
    assert call_with_inputs(lambda x, y=None: (x, y), columns) == (columns[0], None)
    assert call_with_inputs(lambda x, y: (x, y), columns) == columns


def test_the_observed_site_decides_if_log_px_is_a_density():
    x = torch.zeros(3, 2)
    for name, likelihood in LIKELIHOODS.items():
        vae = VAE((2,), 1, likelihood=name)
        assert has_density(vae, training_inputs(vae, Split(x))) is likelihood.density


class Unsaid(nn.Module):
    """A user's model whose likelihood says nothing of its support."""

    def __init__(self, vae):
        super().__init__()
        self.inner = vae
        self.model, self.guide = vae.model, vae.guide


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_program_decides_where_the_model_does_not_say(likelihood):
    vae = VAE((2,), 1, likelihood=likelihood)
    columns = training_inputs(vae, Split(torch.zeros(3, 2)))
    assert has_density(Unsaid(vae), columns) is has_density(vae, columns)


class MaskedLabel(nn.Module):
    """Labels by Pyro's ``obs_mask``, which leaves a deterministic site ``y`` beside those that are observed."""

    takes = ("x", "y")
    observation = dist.Bernoulli(0.5)

    def model(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y.clamp(min=0), obs_mask=y >= 0)
            pyro.sample("x", self.observation.expand([2]).to_event(1), obs=x)
            pyro.sample("extra", dist.Normal(0.0, 1.0), obs=x[:, 0], infer={"auxiliary_loss": True})

    def guide(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y_unobserved", dist.Categorical(torch.ones(3)))


def test_deterministic_sites_and_auxiliary_losses_make_no_density():
    columns = (torch.zeros(3, 2), torch.tensor([0, -1, 2]))
    model = MaskedLabel()
    assert has_density(model, columns) is False
    model.observation = dist.Normal(0.0, 1.0)
    assert has_density(model, columns) is True


def test_a_users_class_and_networks_are_made_by_their_paths():
    model = make(
        "own_models:Mine",
        {
            "data_shape": (6,),
            "latent_dim": 2,
            "hidden": (256, 256),
            "likelihood": "normal",
            "encoder": "own_models:Narrow",
        },
        ["depth=2"],
    )
    assert (type(model).__name__, model.depth, type(model.encoder).__name__) == ("Mine", 2, "Narrow")
    assert [layer.out_features for layer in model.decoder.layers[::2]] == [8, 8]  # its own widths
    assert type(model.likelihood).__name__ == "Normal"
    assert model.encode(torch.zeros(3, 6)).batch_shape == (3,)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vea", "unknown model 'vea'.* did you mean 'vae'.* Or name a class of your own"),
        ("own_models:", "model: expected MODULE:CLASS such as"),
        ("own models:Mine", "model: expected MODULE:CLASS such as"),
        (
            "nowhere.at_all:Mine",
            "model nowhere.at_all:Mine: Python finds no module called nowhere",
        ),
        ("own_broken:Mine", r"importing own_broken failed \(ZeroDivisionError: division by zero\)"),
        ("own_models:Other", "expected a subclass of torch.nn.Module in own_models, got none"),
        ("own_models:function", "expected a subclass of torch.nn.Module in own_models, got builtin_function"),
        ("own_models:Guideless", "the class needs the Pyro functions model and guide, but has no guide"),
        ("own_models:Shapeless", r"expected a constructor that takes data_shape, got Shapeless\(size\)"),
    ],
)
def test_an_unusable_name_of_a_model_is_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        model_class(name)
    assert "\n" not in str(caught.value)


def test_options_are_read_by_the_constructors_names():
    cls = model_class("own_models:Mine")
    assert constructor_options(cls) == ["depth", "posterior", "prior", "network"]
    assert read_options("mine", cls, ["depth=3", "prior=flat", "posterior=[1, 2]"]) == {
        "depth": 3,
        "prior": "flat",
        "posterior": [1, 2],
    }
    for words, sentence in (
        (["deep=3"], "unknown option of --model mine 'deep'.*did you mean 'depth'"),
        (["depth"], "model_options: expected NAME=VALUE, got 'depth'"),
        (["depth=1", "depth=2"], "model_options: expected depth once, got two values"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_options("mine", cls, words)
    with pytest.raises(
        ValueError,
        match="model own_models:Needy: the constructor needs a value for depth; .*--model-options depth=VALUE",
    ):
        make("own_models:Needy", {"data_shape": (2,)})
