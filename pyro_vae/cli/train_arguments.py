"""The flags of ``python -m pyro_vae.train`` and their defaults.

The defaults come from the model, from the configuration file (``--config``), or from the run that ``--resume`` names.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyro_vae.cli.parser import Parser, Values, fill
from pyro_vae.data.binarization import BINARIZE
from pyro_vae.data.files.open import is_path
from pyro_vae.data.named.registry import NAMED
from pyro_vae.inference.kl.registry import CONTROLS
from pyro_vae.inference.objectives.registry import OBJECTIVES
from pyro_vae.inference.svi.optimizer import LR_SCHEDULES, OPTIMIZERS
from pyro_vae.inference.svi.precision import PRECISIONS
from pyro_vae.lookup import part_form
from pyro_vae.models.registry import MODELS, PARTS, model_settings
from pyro_vae.networks.mlp import ACTIVATIONS
from pyro_vae.runs import sweep
from pyro_vae.runs.config import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from pyro_vae.runs.directory import Checkpoint, RunDirectory, resuming
from pyro_vae.schedules import RAMPS

#: Keys of the configuration that may be changed when a run is resumed.
FREE = frozenset(
    {"epochs", "patience", "num_samples", "num_workers", "data_dir", "download", "check_every", "compile_draws"}
)

#: Flags that set the KL weight. If one is given, the model's default of ``beta`` does not apply.
SETS_BETA = frozenset({"beta_sweep", *(name for name, control in CONTROLS.items() if not control.kind.takes_beta)})

#: For each flag, the names that it accepts, from the registries.
NAMES: dict[str, Iterable[str]] = {
    "dataset": NAMED,
    "binarize": BINARIZE,
    "model": MODELS,
    **PARTS,
    "activation": ACTIVATIONS,
    "elbo": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "lr_schedule": LR_SCHEDULES,
    "anneal": RAMPS,
    "precision": PRECISIONS,
}


@dataclass(frozen=True)
class Options:
    """The flags of the command itself: its folder, device and output."""

    run_dir: Path | None = None
    """Folder for the run's files; default: a new one under runs/."""
    config: Path | None = None
    """JSON file with settings, such as the config.json of a run;
    other flags override it."""
    beta_sweep: tuple[float, ...] = ()
    """Train once for each KL weight and draw the rate-distortion curve;
    the same command again resumes an interrupted sweep."""
    resume: Path | None = None
    """Folder of a run to resume; --epochs is the total."""
    overwrite: bool = False
    """Replace the run in --run-dir."""
    device: str = "auto"
    """Device: auto (a GPU if one works), cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: as many as this process may use."""
    quiet: bool = False
    """Print only errors."""
    version: bool = False
    """Print the version and exit."""


@dataclass(frozen=True)
class Arguments:
    """The values of the command's flags, by group."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"group": "training"})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"group": "evaluation"})
    run: Options = field(default_factory=Options)


def read(words: Sequence[str], description: str | None = None) -> Values:
    """Read the flags; with ``--help``, print the help and exit.

    Args:
        words: The command-line arguments.
        description: The text of ``--help`` above the flags.

    Returns:
        The values of the given flags, by field.

    Raises:
        ValueError: If a flag is unknown, or a value has the wrong type.
    """
    given = _parser(Arguments(), description).read(words)
    if given.pop("help", False):
        _parser(_model_defaults(given), description).print_help()
        sys.exit(0)
    return given


def _parser(default: Arguments, description: str | None) -> Parser:
    parts = {kind: [part_form(name, cls) for name, cls in table.items()] for kind, table in PARTS.items()}
    return Parser(default, "python -m pyro_vae.train", description, NAMES | parts)


def complete(given: Values) -> tuple[Config, Options, Checkpoint | None]:
    """Complete the given flags with the defaults of all other flags.

    Args:
        given: The values of the given flags, from :func:`read`.

    Returns:
        The configuration; the options of the command; and the checkpoint from which to resume, or None for a new run.

    Raises:
        ValueError: If the run or the configuration file cannot be read, or a flag changes a key of a resumed run that must
            not change; ``FREE`` lists the keys that may.
    """
    folder, file, checkpoint = given.get("resume"), given.get("config"), None
    if folder is not None and file is not None:
        raise ValueError(
            "--config: cannot be combined with --resume, which uses the settings of the run; remove one of the two flags."
        )
    if folder is not None:
        checkpoint, before = RunDirectory(folder).begun()
        default = _arguments(before)
    else:
        default = _model_defaults(given) if file is None else _arguments(Config.read(file))
    args = fill(default, given)
    evaluate = args.evaluate
    if evaluate.compile_draws is None and given.get("compile") is False:
        evaluate = dataclasses.replace(evaluate, compile_draws=False)
    config = Config(_located(args.data), args.model, args.train, evaluate)
    if given.get("beta_sweep") == ():
        sweep.check((), config)
    if folder is not None:
        check_resumed(config, before, folder)
    return config, args.run, checkpoint


def parse(words: Sequence[str]) -> tuple[Config, Options, Checkpoint | None]:
    """Read a command line and fill in the defaults."""
    return complete(read(words))


def check_resumed(config: Config, before: Config, folder: Path) -> None:
    """Check that a run is resumed with its own configuration.

    The path of a user's own data may be new: the data themselves are compared when they are read.

    Args:
        config: The configuration with which the run is to be resumed.
        before: The configuration with which the run was started.
        folder: Folder of the run, for the error message.

    Raises:
        ValueError: If the configurations differ in a key that must not change; ``FREE`` lists the keys that may.
    """
    named = {config.data.dataset, before.data.dataset} & NAMED.keys()
    if changed := config.differences(before, FREE if named else FREE | {"dataset"}):
        raise ValueError(
            f"{resuming(folder)}: expected the configuration of that run, got {', '.join(changed)}; remove these flags, or "
            "start a new run."
        )


def _arguments(config: Config) -> Arguments:
    return Arguments(config.data, config.model, config.train, config.evaluate)


def _model_defaults(given: Values) -> Arguments:
    """Return the defaults of all flags for the chosen model."""
    model = given.get("model", ModelConfig.model)
    defaults = model_settings(model)
    if SETS_BETA & given.keys():
        defaults.pop("beta", None)
    data, training = (
        {f.name: defaults.pop(f.name) for f in dataclasses.fields(section) if f.name in defaults}
        for section in (DataConfig, TrainConfig)
    )
    if defaults:
        raise ValueError(
            f"model {model}: expected only flags of data and training in `defaults`, got {next(iter(defaults))!r}; correct "
            "the class."
        )
    try:
        Config.from_dict({"data": data, "train": training})
    except ValueError as error:
        raise ValueError(f"model {model}.defaults: {error}") from None
    return Arguments(data=DataConfig(**data), train=TrainConfig(**training))


def _located(data: DataConfig) -> DataConfig:
    """Make paths absolute, so that a run can be resumed from elsewhere."""
    path = data.dataset not in NAMED and is_path(data.dataset)
    return dataclasses.replace(
        data,
        dataset=os.path.abspath(Path(data.dataset).expanduser()) if path else data.dataset,
        data_dir=str(Path(data.data_dir).expanduser().resolve()) if data.data_dir else data.data_dir,
    )
