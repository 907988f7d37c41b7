"""Data, model, objective and options of a run, made from its configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pyro_vae import data as data_module
from pyro_vae.data import Data
from pyro_vae.data.labels import are_vectors, check_labels
from pyro_vae.errors import first_line
from pyro_vae.inference.kl.registry import CONTROLS, controlled
from pyro_vae.inference.objectives.registry import OBJECTIVES, elbo, options_of
from pyro_vae.inference.training.checkpoint import check_state
from pyro_vae.inference.training.fit import Callback, early_stopping
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.models.protocol import classifies
from pyro_vae.models.registry import ARGUMENTS, MODELS, constructor_parameters, make, model_class
from pyro_vae.runs.config import Config, ModelConfig
from pyro_vae.runs.directory import RunDirectory


def with_objective(config: Config, name: str) -> Config:
    """The same run with another objective."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, elbo=name))


def make_objective(config: Config, num_data: int | None = None) -> Any:
    """The objective that a configuration names; a total correlation is that of so many training data."""
    t = config.train
    # The data plate is the only one of our models; said here, Pyro need not run them to find out.
    options: dict[str, Any] = {"max_plate_nesting": 1} if config.model.model in MODELS else {}
    if t.vectorize_particles:
        options["vectorize_particles"] = True
    for name in ("num_particles", "num_groups", "alpha", "elbo_weight", "partitions"):
        if (value := getattr(t, name)) is not None:
            if name not in options_of(t.elbo):
                others = " or ".join(other for other in OBJECTIVES if name in options_of(other))
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected with --elbo {others}, got --elbo {t.elbo}; drop it."
                )
            options[name] = value
    _check_companions(config)
    asked = {name: getattr(t, name) for name in (*CONTROLS, "free_bits_per", "capacity_weight")}
    return controlled(elbo(t.elbo, **options), num_data=num_data, **asked)


def _check_companions(config: Config) -> None:
    """Refuse a flag that would do nothing without another, or beside it."""
    t = config.train
    if t.free_bits is None and t.free_bits_per != "unit":
        raise ValueError(f"free_bits_per: expected with --free-bits, got {t.free_bits_per!r} alone; drop it.")
    if t.capacity is None and t.capacity_weight != 100.0:
        raise ValueError(f"capacity_weight: expected with --capacity, got {t.capacity_weight:g} alone; drop it.")
    if config.data.labels is None and config.data.label_seed != 0:
        raise ValueError(
            f"label_seed: expected with --labels, whose choice it seeds, got {config.data.label_seed} alone; drop it."
        )
    if t.total_correlation is not None and t.batch_size < 2:
        raise ValueError(
            f"total_correlation: expected batches of at least 2 codes, which it compares, got --batch-size {t.batch_size}; "
            "take larger ones."
        )


def fit_options(config: Config) -> FitOptions:
    """The options of ``fit`` that a configuration names."""
    values = dataclasses.asdict(config.data) | dataclasses.asdict(config.train)
    return FitOptions(**{f.name: values[f.name] for f in dataclasses.fields(FitOptions)})


def callbacks(config: Config) -> list[Callback]:
    """The callbacks that a configuration asks for."""
    return [] if config.train.patience is None else [early_stopping(config.train.patience)]


def load_data(config: Config) -> Data:
    """The data that a configuration names."""
    d = config.data
    return data_module.load(
        d.dataset,
        data_dir=d.data_dir,
        download=d.download,
        array=d.array,
        image_size=d.image_size,
        skip_broken=d.skip_broken,
        val_size=d.val_size,
        mode=d.binarize or "none",
        seed=d.data_seed,
        labels=d.labels,
        label_seed=d.label_seed,
    )


def make_vae(config: Config, data_shape: tuple[int, ...]) -> Any:
    """The model that a configuration names.

    Raises:
        ValueError: If it names none, or the model refuses what it says, or does not take it.
    """
    m = config.model
    values, usual = dataclasses.asdict(m), dataclasses.asdict(ModelConfig())
    taken = constructor_parameters(model_class(m.model))
    for name in ARGUMENTS[1:]:
        if name not in taken and values[name] != usual[name]:
            raise ValueError(
                f"{name}: expected with a model that takes it, got {values[name]!r} with --model {m.model}; drop it."
            )
    return make(
        m.model,
        {"data_shape": data_shape, **values},
        m.model_options,
        lambda path: saved_vae(RunDirectory(Path(path)))[0],
    )


def with_num_classes(config: Config, data: Data) -> Config:
    """With the number of classes, which a model that takes labels must know, from the data where none is named."""
    asked, found = config.model.num_classes, data.num_classes
    if data.train.y is not None and are_vectors(data.train.y) and classifies(model_class(config.model.model)):
        check_labels(data.train.y, found, complete=False)
    if asked is not None and are_vectors(data.train.y) and asked != found:
        raise ValueError(
            f"num_classes: expected {found}, which is how many numbers the vectors of {Path(data.name).name} have, got "
            f"{asked}; leave it out."
        )
    if asked is not None and found is not None and asked < found:
        raise ValueError(
            f"num_classes: expected at least {found}, since the labels of {Path(data.name).name} go up to {found - 1}, got "
            f"{asked}; leave it out."
        )
    number = asked or found
    if number is None:
        raise ValueError(
            f"labels: expected some for --model {config.model.model}, got {Path(data.name).name} without; take data with "
            "labels, or another model."
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=number))


def saved_vae(directory: RunDirectory) -> tuple[Any, Config, dict[str, Any]]:
    """The model of a run with its best parameters, on the CPU, in eval mode; its configuration; its checkpoint.

    Raises:
        ValueError: If there is no run, or its files cannot be read.
    """
    checkpoint = directory.read_checkpoint()
    config, training = directory.config_of(checkpoint["config"]), checkpoint["training"]
    where = str(directory.path / "checkpoint.pt")
    try:
        vae = make_vae(config, tuple(checkpoint["data"]["data_shape"]))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: expected the configuration of a model, got {first_line(error)}") from None
    check_state(training, vae, where)
    vae.load_state_dict(training["best"] or training["model"])
    return vae.eval(), config, checkpoint
