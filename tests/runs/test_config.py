from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest

from pyro_vae.distributions import LIKELIHOODS, Bernoulli
from pyro_vae.inference import IWAE, OBJECTIVES
from pyro_vae.inference.objectives.registry import options_of
from pyro_vae.runs import build
from pyro_vae.runs.build import make_objective, make_vae
from pyro_vae.runs.config import Config, DataConfig, EvaluateConfig, ModelConfig, ObjectiveConfig, TrainConfig

#: A configuration in which every key differs from its default.
CHANGED = Config(
    DataConfig(
        dataset="faces.npz",
        array="images",
        image_size=(28, 20),
        skip_broken=True,
        num_workers=2,
        data_dir="some/where",
        download=False,
        val_size=0,
        binarize="static",
        data_seed=3,
        labels=100,
        label_seed=2,
    ),
    ModelConfig(
        likelihood="normal",
        latent_dim=5,
        hidden=(7, 3),
        activation="relu",
        model="package.module:Model",
        encoder="package.nets:Encoder",
        decoder="package.nets:Decoder",
        num_classes=7,
        model_options=("noise=0.5",),
    ),
    TrainConfig(
        elbo="mean-field",
        num_particles=2,
        vectorize_particles=True,
        num_groups=3,
        alpha=0.5,
        elbo_weight=0.25,
        partitions=7,
        epochs=9,
        batch_size=11,
        labelled_per_batch=5,
        optimizer="sgd",
        lr=0.5,
        lr_schedule="cosine",
        clip_norm=1.5,
        patience=4,
        beta="z=2.0",
        free_bits=0.1,
        free_bits_per="site",
        min_rate=2.0,
        capacity="25:1000",
        capacity_weight=3.0,
        target_rate=9.0,
        total_correlation=6.0,
        anneal="linear:0:10",
        seed=8,
        compile=True,
        check_every=50,
        precision="bf16",
    ),
    EvaluateConfig(num_samples=77, compile_draws=True),
)


def test_the_changed_configuration_changes_every_key():
    default, changed = Config().to_dict(), CHANGED.to_dict()
    same = [k for section in default for k in default[section] if default[section][k] == changed[section][k]]
    assert same == []


@pytest.mark.parametrize(
    "config", [Config(), CHANGED, Config(model=ModelConfig(hidden=()))], ids=["default", "changed", "no-hidden"]
)
def test_round_trip_through_json(config):
    back = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert isinstance(back.model.hidden, tuple)
    assert isinstance(back.model.model_options, tuple)


def test_a_section_left_out_has_its_defaults():
    assert Config.from_dict({"train": {"lr": 0.1}}) == Config(train=TrainConfig(lr=0.1))


def test_an_unknown_section_is_refused():
    with pytest.raises(ValueError, match="unknown configuration section 'trian'") as caught:
        Config.from_dict({"trian": {}})
    assert str(caught.value).endswith("expected one of data, evaluate, model, train; did you mean 'train'?")


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="unknown train key 'learning_rate'"):
        Config.from_dict({"train": {"learning_rate": 0.1}})
    with pytest.raises(ValueError, match="did you mean 'latent_dim'"):
        Config.from_dict({"model": {"latent_dims": 2}})


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_binarize_follows_the_likelihood(likelihood):
    mode = "dynamic" if LIKELIHOODS[likelihood].support == "binary" else "none"
    assert Config(model=ModelConfig(likelihood=likelihood)).data.binarize == mode


class Soft(Bernoulli):
    """Bernoulli pixels whose logits are divided by a temperature, as ``"soft:2"`` gives it."""

    arguments: ClassVar = {"temperature": 2}

    def __init__(self, data_shape, temperature=1):
        super().__init__(data_shape)
        self.temperature = temperature

    def forward(self, params):
        return super().forward(params / self.temperature)


def test_binarize_follows_a_likelihood_with_arguments(monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "soft", Soft)
    for spec in ("soft", "soft:2"):
        assert Config(model=ModelConfig(likelihood=spec)).data.binarize == "dynamic"
    with pytest.raises(ValueError, match="likelihood: expected soft:TEMPERATURE, such as soft:2, got 'soft:a'"):
        Config(model=ModelConfig(likelihood="soft:a"))
    vae = make_vae(Config(model=ModelConfig(likelihood="soft:2")), (3,))
    assert vae.likelihood.temperature == 2


@pytest.mark.parametrize("option", [f.name for f in dataclasses.fields(ObjectiveConfig) if f.name != "elbo"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_option_of_the_configuration_reaches_the_objective(name, option):
    """Or its flag is refused with the objectives that take it."""
    value = {"vectorize_particles": True, "elbo_weight": 0.25}.get(option, 3)
    config = Config(train=TrainConfig(elbo=name, **{option: value}))
    if option in options_of(name):
        assert getattr(make_objective(config), option) == value
    else:
        with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}: needs --elbo .*the objective is {name}"):
            make_objective(config)


def test_an_objective_with_a_new_option_is_a_row_and_a_field(monkeypatch):
    class Tilted(IWAE):
        def __init__(self, tilt=0.0, **options):
            super().__init__(**options)
            self.tilt = tilt

    @dataclasses.dataclass(frozen=True)
    class Options(ObjectiveConfig):
        tilt: float | None = None

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train(TrainConfig, Options):
        pass

    monkeypatch.setitem(OBJECTIVES, "tilted", Tilted)
    monkeypatch.setattr(build, "ObjectiveConfig", Options)
    made = make_objective(Config(train=Train(elbo="tilted", tilt=0.5, num_particles=7)))
    assert (made.tilt, made.num_particles) == (0.5, 7)
    with pytest.raises(ValueError, match="--tilt: needs --elbo tilted, but the objective is iwae"):
        make_objective(Config(train=Train(elbo="iwae", tilt=0.5)))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_given_binarize_stays(likelihood):
    given = Config(DataConfig(binarize="threshold", val_size=3), ModelConfig(likelihood=likelihood))
    assert given.data == DataConfig(binarize="threshold", val_size=3)


def test_differences_name_the_key_and_both_values():
    other = Config(train=TrainConfig(lr=0.01, epochs=3), model=ModelConfig(hidden=()))
    assert Config().differences(other) == [
        "hidden (256, 256) (there ())",
        "epochs 200 (there 3)",
        "lr 0.001 (there 0.01)",
    ]
    assert Config().differences(Config()) == []


def test_differences_leave_out_the_free_keys():
    other = Config(train=TrainConfig(lr=0.01, epochs=3))
    assert Config().differences(other, frozenset({"epochs"})) == ["lr 0.001 (there 0.01)"]
    assert Config().differences(other, frozenset({"epochs", "lr"})) == []


def test_a_configuration_is_frozen():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train = TrainConfig(lr=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.lr = 1.0


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("train", "epochs", "many", "a whole number"),
        ("train", "epochs", 1.5, "a whole number"),
        ("train", "epochs", True, "a whole number"),
        ("train", "lr", "fast", "a number"),
        ("train", "clip_norm", "no", "a number or null"),
        ("train", "vectorize_particles", 1, "true or false"),
        ("train", "elbo", None, "text"),
        ("model", "hidden", [3, "4"], "a list of whole numbers"),
        ("model", "hidden", 3, "a list of whole numbers"),
        ("model", "model_options", [3], "a list of texts"),
        ("model", "model", None, "text"),
        ("data", "val_size", "some", "a whole number or null"),
    ],
)
def test_a_value_of_another_type_is_refused(section, key, value, expected):
    with pytest.raises(ValueError, match=f"{section}.{key}: expected {expected}, got"):
        Config.from_dict({section: {key: value}})


def test_a_whole_number_is_a_number_and_null_is_none():
    config = Config.from_dict({"train": {"lr": 1, "clip_norm": None}, "data": {"val_size": 3}})
    assert (config.train.lr, config.train.clip_norm, config.data.val_size) == (1.0, None, 3)
    assert isinstance(config.train.lr, float)


def test_read_gives_what_was_written(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CHANGED.to_dict()), encoding="utf-8")
    assert Config.read(tmp_path / "config.json") == CHANGED
