"""The parts of a run, each made once from its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO

from pyro_vae import data as data_module
from pyro_vae import parallel, schedules
from pyro_vae.data import Data
from pyro_vae.data.labels import are_vectors, check_labels
from pyro_vae.errors import first_line
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.kl.registry import FLAGS, controlled
from pyro_vae.inference.kl.total_correlation import TotalCorrelation
from pyro_vae.inference.objectives.registry import OBJECTIVES, default_objective, elbo, options_of
from pyro_vae.inference.training.checkpoint import State, check_state
from pyro_vae.inference.training.fit import Callback, early_stopping
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.models.protocol import PyroModel, classifies
from pyro_vae.models.registry import (
    ARGUMENTS,
    FLAGS_AND_OPTIONS,
    MODELS,
    check_parts,
    constructor_parameters,
    make,
    model_class,
)
from pyro_vae.runs.config import Config, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from pyro_vae.runs.directory import Checkpoint, RunDirectory
from pyro_vae.schedules import Schedule
from pyro_vae.system.randomness import own_randomness

#: Disk space for the files whose size does not depend on the model: pictures, metrics, generators.
SPARE_BYTES = 10_000_000


@dataclass(frozen=True)
class Plan:
    """All parts of a run, each made once, before anything is written.

    Attributes:
        config: The configuration, with every default resolved.
        data: The data.
        vae: The model.
        objective: The objective, before training; the trial run uses a copy of it.
        options: Training options: numbers and names.
        beta: KL weight: one schedule for all latent sites, or a dict with a schedule for each site, by name.
        callbacks: Callbacks of the training.
        device: Device of the data and the model.
        fingerprint: Shape, sizes and checksums that identify the data.
        resume: The training state that a resumed run continues from; None for a new run.
        seconds: Training time of earlier sessions, seconds.
        compiling: A phrase for the terminal that says if training steps are compiled, and why.
    """

    config: Config
    data: Data
    vae: PyroModel
    objective: ELBO
    options: FitOptions
    beta: Schedule | Mapping[str, Schedule]
    callbacks: tuple[Callback, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fingerprint: dict[str, object] = field(default_factory=dict)
    resume: State | None = None
    seconds: float = 0.0
    compiling: str = ""

    @property
    def disk_bytes(self) -> int:
        """Bytes that the run will write, mainly two checkpoints."""
        # A checkpoint holds the last and the best parameters, and two moments of the optimizer.
        parameters = sum(v.numel() * v.element_size() for v in self.vae.state_dict().values())
        return 2 * 4 * parameters + SPARE_BYTES


def make_plan(config: Config) -> Plan:
    """Make the parts of a run, on the CPU.

    Parts that need no data are made first, so that a wrong flag is refused before data are downloaded.

    Raises:
        ValueError: If the configuration has an unknown name, a number out of range or an option without effect.
    """
    t = config.train
    options, stopping = fit_options(config), callbacks(config)
    objective = make_objective(config) if t.elbo else None
    beta = schedules.parse_all(t.anneal, t.beta)
    Betas(beta)  # refuses weights that are negative or not finite
    taken = constructor_parameters(model_class(config.model.model))
    check_parts(config.model.model, dataclasses.asdict(config.model))
    with parallel.local_main_first():  # one process downloads the data and makes the files next to them
        data = load_data(config)
    if t.patience is not None and data.validation is None:
        raise ValueError("patience: --patience needs validation data, but --val-size is 0; pass a larger --val-size.")
    if "num_classes" in taken:
        config = with_num_classes(config, data)
    with own_randomness(t.seed):
        vae = make_vae(config, data.data_shape)
    if objective is None:  # the model's options decide its default objective
        config = with_objective(config, default_objective(vae))
        objective = make_objective(config)
    if isinstance(objective, TotalCorrelation):  # the number of training data is known only now
        objective.num_data = len(data.train.x)
    return Plan(config, data, vae, objective, options, beta, stopping)


def with_objective(config: Config, name: str) -> Config:
    """Return the configuration with another objective."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, elbo=name))


def make_objective(config: Config) -> ELBO:
    """Make a configuration's objective, wrapped in the KL controls.

    Raises:
        TypeError: If a KL control does not suit the objective.
        ValueError: If a name is unknown, a number is out of range, or a flag has no effect.
    """
    t = config.train
    # The package's models have one plate, so Pyro need not run them to find the plate depth.
    options: dict[str, object] = {"max_plate_nesting": 1} if config.model.model in MODELS else {}
    options |= _objective_options(t)
    _check_companions(config)
    return controlled(elbo(t.elbo, **options), **{name: getattr(t, name) for name in FLAGS})


def _objective_options(given: TrainConfig) -> dict[str, object]:
    """Return the options of the objective that differ from the default.

    Raises:
        ValueError: If the objective does not take an option.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(ObjectiveConfig) if f.name != "elbo"}
    options = {name: getattr(given, name) for name, default in defaults.items() if getattr(given, name) != default}
    for name in options:
        if name not in options_of(given.elbo):
            others = " or ".join(other for other in OBJECTIVES if name in options_of(other))
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}: needs --elbo {others}, but the objective is {given.elbo}; remove {flag}.")
    return options


def _check_companions(config: Config) -> None:
    """Refuse a flag that does not work with the other flags.

    The cases are --label-seed without --labels, and a total correlation with batches of a single datum.
    """
    t = config.train
    if config.data.labels is None and config.data.label_seed != DataConfig.label_seed:
        raise ValueError(f"label_seed: {config.data.label_seed} has no effect without --labels; remove --label-seed.")
    if t.total_correlation is not None and t.batch_size < 2:
        raise ValueError(
            "total_correlation: the total correlation needs batches of at least 2 data, but --batch-size is "
            f"{t.batch_size}; pass a larger --batch-size."
        )


def fit_options(config: Config) -> FitOptions:
    """Return the options that a configuration passes to ``fit``."""
    values = dataclasses.asdict(config.data) | dataclasses.asdict(config.train)
    return FitOptions(**{f.name: values[f.name] for f in dataclasses.fields(FitOptions)})


def callbacks(config: Config) -> tuple[Callback, ...]:
    """Return the callbacks of a configuration."""
    return () if config.train.patience is None else (early_stopping(config.train.patience),)


def load_data(config: Config) -> Data:
    """Load the data of a configuration."""
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


def with_num_classes(config: Config, data: Data) -> Config:
    """Return the configuration with the data's number of classes filled in.

    Raises:
        ValueError: If the model needs a number of classes and neither the configuration nor the data have it, or if the
            configuration's number conflicts with the labels of the data.
    """
    given, counted, name = config.model.num_classes, data.num_classes, Path(data.name).name
    if data.train.y is not None and are_vectors(data.train.y) and classifies(model_class(config.model.model)):
        check_labels(data.train.y, counted, complete=False)
    if given is not None and are_vectors(data.train.y) and given != counted:
        raise ValueError(
            f"num_classes: expected {counted}, the length of the label vectors of {name}, got {given}; "
            "remove --num-classes."
        )
    if given is not None and counted is not None and given < counted:
        raise ValueError(
            f"num_classes: expected at least {counted}, since the labels of {name} go up to {counted - 1}, got {given}; "
            "remove --num-classes."
        )
    number = given or counted
    if number is None:
        raise ValueError(
            f"labels: --model {config.model.model} needs labels, but data set {name} has none; choose data with labels, or "
            "another model."
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=number))


def make_vae(config: Config, data_shape: tuple[int, ...]) -> PyroModel:
    """Make the model of a configuration.

    Raises:
        ValueError: If the model's name is unknown, if a flag is set that the model does not take, or if the model refuses a
            value.
    """
    m = config.model
    values, defaults = dataclasses.asdict(m), dataclasses.asdict(ModelConfig())
    taken = constructor_parameters(model_class(m.model))
    for name in ARGUMENTS[1:]:
        if name not in taken and values[name] != defaults[name]:
            raise ValueError(
                f"{name}: --model {m.model} has no argument {name}, got {values[name]!r}; "
                f"remove --{name.replace('_', '-')}."
            )
    for option in m.model_options:
        name, _, value = option.partition("=")
        if name in FLAGS_AND_OPTIONS and values[name]:
            raise ValueError(
                f"{name}: given twice, by --{name} {values[name]} and by --model-options {name}={value}; remove one of the "
                "two."
            )
    vae: Any = make(  # an nn.Module, whose model and guide have been checked
        m.model,
        {"data_shape": data_shape, **values},
        m.model_options,
        load_run=lambda path: saved_vae(RunDirectory(Path(path))).vae,
    )
    return vae


class SavedVae(NamedTuple):
    """The trained model of a run.

    Attributes:
        vae: The model with its best parameters, on the CPU, in eval mode.
        config: The configuration of the run.
        checkpoint: The checkpoint of the run.
    """

    vae: PyroModel
    config: Config
    checkpoint: Checkpoint


def saved_vae(directory: RunDirectory) -> SavedVae:
    """Load the trained model of a run.

    The model has the best parameters of the training. Before the first validation, it has the last parameters.

    Raises:
        ValueError: If the folder has no checkpoint, or the checkpoint cannot be read.
    """
    checkpoint = directory.read_checkpoint()
    config, training = directory.config_of(checkpoint["config"]), checkpoint["training"]
    where = str(directory.path / "checkpoint.pt")
    try:
        vae = make_vae(config, tuple(checkpoint["data"]["data_shape"]))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: the configured model cannot be made: {first_line(error)}") from None
    check_state(training, vae, where)
    vae.load_state_dict(training["best"] or training["model"])
    return SavedVae(vae.eval(), config, checkpoint)
