"""Configuration of a run: the source of the flags and of ``config.json``.

The string below a field is the help text of the field's flag; ``{names}`` in it stands for the names in a registry.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.inference.objectives.registry import default_objective
from pyro_vae.inference.training.options import TrainingOptions
from pyro_vae.lookup import parse_part, unknown
from pyro_vae.models.registry import MODELS, PARTS, constructor_default, model_class

S = TypeVar("S")


@dataclass(frozen=True)
class DataConfig:
    """The data, their split and their binarization."""

    dataset: str = "digits"
    """Data set: {names};
    or the path of a .npy, .npz, .csv or .parquet file, or of a folder of images."""
    array: str | None = None
    """Name of the array in an .npz file;
    default: the only array of the file."""
    image_size: tuple[int, ...] = ()
    """Height and width of the images, or one number for both;
    default: the images' own size."""
    skip_broken: bool = False
    """Leave out broken images of a folder instead of refusing them."""
    num_workers: int = 0
    """Number of processes that read ahead, for data too large for memory."""
    data_dir: str | None = None
    """Folder of the data sets' files, in torchvision's layout;
    default: PYRO_VAE_DATA, else a cache folder."""
    download: bool = True
    """Download missing files."""
    val_size: int | None = None
    """Number of training images set aside for validation, 0 for none;
    default: as many as there are test images, at most a fifth of the training images."""
    binarize: str | None = None
    """Binarization of the pixels: {names};
    dynamic draws anew for every batch, static draws once;
    default: dynamic for a likelihood of binary pixels, else none."""
    data_seed: int = 0
    """Seed of the validation split and of images that are binarized once;
    runs with different --seed share both."""
    labels: int | None = None
    """Number of known training labels, equally many of each class;
    default: all."""
    label_seed: int = 0
    """Seed of the choice of known labels."""


@dataclass(frozen=True)
class ModelConfig:
    """The model p(z) p(x|z) and its guide q(z|x)."""

    model: str = "vae"
    """Model: {names}; or a class of your own, MODULE:CLASS."""
    likelihood: str = ""
    """Likelihood p(x|z): {names}; default: the model's own; for most models, bernoulli."""
    prior: str = ""
    """Prior p(z): {names};
    default: the model's own; for most models, normal, which is N(0, I)."""
    posterior: str = ""
    """Posterior q(z|x): {names}; default: the model's own; for most models, normal."""
    latent_dim: int = 16
    """Size of the latent vector."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the encoder's hidden layers;
    the decoder has them in reverse order; without widths, the maps are linear."""
    activation: str = "tanh"
    """Activation of the hidden layers: {names}."""
    network: str = ""
    """Kind of all networks: {names};
    default: the model's own; for most models, mlp."""
    encoder: str | None = None
    """Your own encoder, MODULE:CLASS, constructed like pyro_vae.networks.MLP (docs/extending.md);
    default: a network of kind --network."""
    decoder: str | None = None
    """Your own decoder, MODULE:CLASS; default: a network of kind --network."""
    num_classes: int | None = None
    """Number of classes, for a model that takes labels;
    default: counted from the labels."""
    model_options: tuple[str, ...] = ()
    """Other arguments of the model's constructor, NAME=VALUE, such as noise=masking:0.3 with denoising."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective and its options.

    Every field except ``elbo`` is an option of the objectives whose constructors have a parameter of that name.
    """

    elbo: str = ""
    """Objective: {names}; docs/objectives.md compares them;
    default: the model's own; for most models, trace."""
    num_particles: int | None = None
    """Draws from the guide for each datum and training step, per group;
    default: 5 for iwae and its variants, 10 for tvo, else 1."""
    vectorize_particles: bool = False
    """Draw all particles in one call; iwae and its variants always do."""
    num_groups: int | None = None
    """Number of groups of draws, for miwae and piwae; default: 4."""
    alpha: float | None = None
    """Order of the Renyi bound, for renyi and dreg;
    default: 0, the bound of iwae."""
    elbo_weight: float | None = None
    """Weight of the ELBO in ciwae, from 0 to 1; default: 0.5."""
    partitions: int | None = None
    """Number of intervals of tvo; default: 4."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingOptions, ObjectiveConfig):
    """Training by stochastic variational inference."""

    epochs: int = 200
    batch_size: int = 64
    patience: int | None = None
    """Stop when the validation ELBO has not risen for this many epochs;
    default: never."""
    beta: float | str = 1.0
    """Final KL weight: a number, or one per latent site, z1=0.5,z2=2."""
    anneal: str = "constant"
    """Schedule of beta: constant, linear:START:STEPS, cosine:START:STEPS, sigmoid:START:STEPS or
    cyclical:START:STEPS[:CYCLES]."""
    free_bits: float | None = None
    """Smallest rate of each latent unit, nats; needs --elbo trace or mean-field."""
    free_bits_per: str = "unit"
    """Apply --free-bits to each latent unit or site: unit or site."""
    min_rate: float | None = None
    """Smallest total rate, nats."""
    capacity: str | None = None
    """Capacity that the rate is pulled to: NATS,
    or NATS:STEPS to raise the capacity over that many training steps."""
    capacity_weight: float = 100.0
    """Weight of the distance between rate and capacity."""
    total_correlation: float | None = None
    """Weight of the codes' total correlation; needs --elbo trace or mean-field."""
    target_rate: float | None = None
    """Keep the rate at this many nats by adapting beta."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on the test data."""

    num_samples: int = 1000
    """Importance samples for each datum."""
    compile_draws: bool | None = None
    """Compile the draws of the evaluation;
    default: only if there are enough draws to repay compiling, never with --no-compile."""


#: Types of JSON values in words, for errors.
JSON_TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of texts",
}


def _json_object(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object, got {value!r}; compare with the config.json of a run.")
    return value


def _section(name: str, section: type[S], value: object) -> S:
    """Make one section of a configuration from a JSON value."""
    hints = typing.get_type_hints(section)
    fields = _json_object(name, value)
    for key in fields:
        if key not in hints:
            raise unknown(f"{name} key", key, hints)
    return section(**{key: _field(f"{name}.{key}", value, hints[key]) for key, value in fields.items()})


def _field(name: str, value: object, hint: object) -> object:
    """Convert the JSON value of a field; refuse a wrong type.

    A list becomes a tuple if the field is a tuple; a whole number becomes a float if the field is a float.
    """
    converted = tuple(value) if isinstance(value, list) else value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if type(converted) is kind:
            return converted
        if kind is float and type(converted) is int:
            return float(converted)
        if isinstance(converted, tuple) and typing.get_origin(kind) is tuple:
            if all(type(item) is typing.get_args(kind)[0] for item in converted):
                return converted
    expected = " or ".join(JSON_TYPES[kind] for kind in kinds)
    raise ValueError(f"{name}: expected {expected}, got {value!r}; correct the value.")


def _with_own_parts(cls: type[nn.Module], config: ModelConfig) -> ModelConfig:
    """Fill in the model's default parts where the configuration names none."""
    options = {option.partition("=")[0] for option in config.model_options}
    unnamed = [kind for kind in PARTS if not getattr(config, kind) and kind not in options]
    own = {kind: constructor_default(cls, kind) for kind in unnamed}
    named: dict[str, Any] = {kind: name for kind, name in own.items() if isinstance(name, str)}
    return dataclasses.replace(config, **named)


def _default_binarize(likelihood: str) -> str:
    """Return the binarization that a likelihood, ``NAME:ARG:ARG``, implies."""
    if likelihood.partition(":")[0] not in LIKELIHOODS:  # a name that only the user's class knows, or a wrong one
        return "none"
    cls, _ = parse_part("likelihood", likelihood, LIKELIHOODS)
    return "dynamic" if cls.support == "binary" else "none"


@dataclass(frozen=True)
class Config:
    """Configuration of a run: data, model, training and evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        """Fill in the parts, objective and binarization that the model implies."""
        # Import a user's class only if its defaults are needed: a run can be described without the class.
        if self.model.model in MODELS or not (self.model.likelihood and self.train.elbo):
            cls = model_class(self.model.model)
            object.__setattr__(self, "model", _with_own_parts(cls, self.model))
            if not self.train.elbo and not self.model.model_options:  # options of a model may change its objective
                object.__setattr__(self, "train", dataclasses.replace(self.train, elbo=default_objective(cls)))
        if self.data.binarize is None:
            mode = _default_binarize(self.model.likelihood)
            object.__setattr__(self, "data", dataclasses.replace(self.data, binarize=mode))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the configuration as nested plain containers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Config:
        """Make a configuration from the dict of :meth:`to_dict`.

        A missing section or key takes its default.

        Raises:
            ValueError: If a section or key is unknown, or a value has the wrong type.
        """
        sections = typing.get_type_hints(cls)
        made = {}
        for name, value in _json_object("configuration", values).items():
            if name not in sections:
                raise unknown("configuration section", name, sections)
            made[name] = _section(name, sections[name], value)
        return cls(**made)

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read a JSON file, such as the ``config.json`` of a run.

        Raises:
            ValueError: If the file cannot be read, or holds no configuration.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"configuration {path}: expected a JSON file such as the config.json of a run, got {error}; name such a file, "
                "or pass flags instead."
            ) from None
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"configuration {path}: {error}") from None

    def differences(self, other: Config, free: frozenset[str] = frozenset()) -> list[str]:
        """List differences to another configuration, such as ``"lr 0.001 (there 0.01)"``.

        Args:
            other: The other configuration. Each text names a field, the value here, and in brackets the value of ``other``.
            free: Fields that may differ; they are not listed.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{key} {value!r} (there {theirs[section][key]!r})"
            for section, values in mine.items()
            for key, value in values.items()
            if key not in free and value != theirs[section][key]
        ]
