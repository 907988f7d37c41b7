"""What a configuration says of training, as objects: the objective, the options of ``fit``, the callbacks."""

from __future__ import annotations

import dataclasses
from typing import Any

from pyro_vae.config import Config
from pyro_vae.inference.controls import CONTROLS, controlled
from pyro_vae.inference.loop import Callback, early_stopping
from pyro_vae.inference.registry import OBJECTIVES, elbo, options_of
from pyro_vae.inference.training import FitOptions
from pyro_vae.models.registry import MODELS


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
