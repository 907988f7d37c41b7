"""What a run is: frozen dataclasses, from which the command line and ``config.json`` are both made."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.inference.objectives.registry import default_objective
from pyro_vae.inference.training.options import TrainingOptions
from pyro_vae.lookup import unknown
from pyro_vae.models.registry import MODELS, PARTS, constructor_default, model_class


@dataclass(frozen=True)
class DataConfig:
    """The data: what is modelled, and how it is split and binarized."""

    dataset: str = "digits"
    """digits (which needs no files), mnist, fashion-mnist, kmnist, emnist-letters, omniglot, svhn, cifar10, celeba, shapes
    (made here, with known factors), or the path of a .npy, .npz, .csv or .parquet file or of a folder of images."""
    array: str | None = None
    """Which array of an .npz; default: the only one."""
    image_size: tuple[int, ...] = ()
    """Height and width of the images, or one number for both; default: as they are."""
    skip_broken: bool = False
    """Whether broken images of a folder are left out instead of refused."""
    num_workers: int = 0
    """Processes that read ahead, where the data are too large for memory."""
    data_dir: str | None = None
    """Folder with (or for) the files, in torchvision's layout; default: PYRO_VAE_DATA, else a cache folder."""
    download: bool = True
    """Whether missing files may be fetched."""
    val_size: int | None = None
    """How many training images to set aside for validation, 0 for none; default: as many as test images, at most a fifth."""
    binarize: str | None = None
    """dynamic (redrawn for every batch), static (drawn once), threshold or none; default: dynamic for a Bernoulli."""
    data_seed: int = 0
    """Seed of the validation split and of the binarization of fixed images, so that runs of many seeds share them."""
    labels: int | None = None
    """How many training labels the model is told, as many of each class, the others being unknown; default: all."""
    label_seed: int = 0
    """Seed of the choice of these."""


@dataclass(frozen=True)
class ModelConfig:
    """The model p(z) p(x|z) and its guide q(z|x)."""

    model: str = "vae"
    """{names}, or a class of your own, MODULE:CLASS."""
    likelihood: str = ""
    """Likelihood p(x|z): {names}; default: the model's own; for most models, bernoulli."""
    prior: str = ""
    """Prior p(z): {names}; default: the model's own; for most models, normal, which is N(0, I)."""
    posterior: str = ""
    """Posterior q(z|x): {names}; default: the model's own; for most models, normal."""
    latent_dim: int = 16
    """Size of the latent vector."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the encoder's hidden layers, the decoder's in reverse; none at all: a linear map."""
    activation: str = "tanh"
    """Activation of the hidden layers: {names}."""
    network: str = ""
    """Kind of all networks: {names}; default: the model's own; for most models, mlp."""
    encoder: str | None = None
    """Encoder of your own, MODULE:CLASS, made as pyro_vae.networks.MLP is (docs/extending.md); default: one of --network."""
    decoder: str | None = None
    """Decoder of your own, MODULE:CLASS; default: one of --network."""
    num_classes: int | None = None
    """Number of classes, for a model that takes labels; default: counted from the labels."""
    model_options: tuple[str, ...] = ()
    """Other arguments of the model's constructor, NAME=VALUE, such as noise=masking:0.3 with denoising."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective and its options."""

    elbo: str = ""
    """trace (every term sampled), mean-field (the KL in closed form), graph, enum, iwae, vimco, renyi, dreg, stl, miwae, ciwae,
    piwae, rws or tvo; docs/objectives.md compares them; default: the model's own; for most models, trace."""
    num_particles: int | None = None
    """Draws of the guide for each datum and step, in each group; default: 1, for iwae and its kin 5, for tvo 10."""
    vectorize_particles: bool = False
    """Make these draws in one call; iwae and its kin always do."""
    num_groups: int | None = None
    """Groups of draws, for miwae and piwae; default: 4."""
    alpha: float | None = None
    """Order of the bound, for renyi and dreg; default: 0, the bound of iwae."""
    elbo_weight: float | None = None
    """Share of the ELBO in ciwae; default: 0.5."""
    partitions: int | None = None
    """Intervals of tvo; default: 4."""


@dataclass(frozen=True)
class TrainConfig(TrainingOptions, ObjectiveConfig):
    """Training: stochastic variational inference."""

    epochs: int = 200
    batch_size: int = 64
    patience: int | None = None
    """Stop if the validation ELBO has not risen for so many epochs; default: never."""
    beta: float | str = 1.0
    """Final weight of the KL: a number, or SITE=NUMBER,... for some sites."""
    anneal: str = "constant"
    """Schedule of beta: constant, linear:START:STEPS, cosine:START:STEPS, sigmoid:START:STEPS or
    cyclical:START:STEPS[:CYCLES]."""
    free_bits: float | None = None
    """Floor under the rate of each unit, nats; with trace or mean-field."""
    free_bits_per: str = "unit"
    """unit or site: each of them has that floor."""
    min_rate: float | None = None
    """Floor under the whole rate, nats."""
    capacity: str | None = None
    """Hold the rate at a capacity: NATS, or NATS:STEPS to reach it."""
    capacity_weight: float = 100.0
    """Weight of the distance to the capacity."""
    total_correlation: float | None = None
    """Weight of the total correlation of the codes of each batch; with trace or mean-field."""
    target_rate: float | None = None
    """Hold the rate at so many nats by a controller of beta."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on the test data."""

    num_samples: int = 1000
    """Importance samples for each datum."""
    compile_draws: bool | None = None
    """Whether to compile the draws; default: if they are many enough to repay it, and never after --no-compile."""


def _mapping(what: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{what}: expected names with their values, got {given!r}; compare with a run's config.json.")
    return given


def _value(name: str, given: Any, hint: Any) -> Any:
    """A value from JSON, checked against the type of its field: lists become tuples, whole numbers floats."""
    plain = tuple(given) if isinstance(given, list) else given
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        if kind is float and type(plain) is int:
            return float(plain)
        if typing.get_origin(kind) is tuple:
            if isinstance(plain, tuple) and all(type(n) is typing.get_args(kind)[0] for n in plain):
                return plain
        elif type(plain) is kind:
            return plain
    words = " or ".join(_TYPES[kind] for kind in allowed)
    raise ValueError(f"key {name}: expected {words}, got {given!r}; correct it.")


_TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of texts",
}


def _with_own_parts(cls: type[nn.Module], config: ModelConfig) -> ModelConfig:
    """Fill in the names of the model's own parts, unless a flag or an option of the model names another."""
    options = {option.partition("=")[0] for option in config.model_options}
    unnamed = [kind for kind in PARTS if not getattr(config, kind) and kind not in options]
    own = {kind: constructor_default(cls, kind) for kind in unnamed}
    named: dict[str, Any] = {kind: name for kind, name in own.items() if isinstance(name, str)}
    return dataclasses.replace(config, **named)


@dataclass(frozen=True)
class Config:
    """A run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        """Fill in what the model decides where nothing is said."""
        # A user's class is imported only if it must be: a run can be described without it.
        if self.model.model in MODELS or not (self.model.likelihood and self.train.elbo):
            cls = model_class(self.model.model)
            object.__setattr__(self, "model", _with_own_parts(cls, self.model))
            if not self.train.elbo and not self.model.model_options:  # options of a model may change its objective
                object.__setattr__(self, "train", dataclasses.replace(self.train, elbo=default_objective(cls)))
        if self.data.binarize is None:
            likelihood = LIKELIHOODS.get(self.model.likelihood)
            mode = "dynamic" if likelihood is not None and likelihood.support == "binary" else "none"
            object.__setattr__(self, "data", dataclasses.replace(self.data, binarize=mode))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain containers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If a section or key is unknown, or a value is of another type than it should be.
        """
        sections = typing.get_type_hints(cls)
        made = {}
        for name, given in _mapping("configuration", values).items():
            if name not in sections:
                raise unknown("section of the configuration", name, sections)
            hints = typing.get_type_hints(sections[name])
            for key in _mapping(f"configuration's section {name!r}", given):
                if key not in hints:
                    raise unknown(f"key of the configuration's section {name!r}", key, hints)
            made[name] = sections[name](**{k: _value(f"{name}.{k}", v, hints[k]) for k, v in given.items()})
        return cls(**made)

    @classmethod
    def read(cls, path: Path) -> Config:
        """The configuration in a JSON file, such as the ``config.json`` of a run.

        Raises:
            ValueError: If it cannot be read or something in it is wrong.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"configuration {path}: expected a JSON file such as the config.json of a run, got {error}; name one, or give "
                "flags instead."
            ) from None
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"configuration {path}: {error}") from None

    def differences(self, other: Config, free: frozenset[str] = frozenset()) -> list[str]:
        """What differs, as ``"lr 0.001 (there 0.01)"``, leaving out the keys in ``free``."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{key} {value!r} (there {theirs[section][key]!r})"
            for section, values in mine.items()
            for key, value in values.items()
            if key not in free and value != theirs[section][key]
        ]
