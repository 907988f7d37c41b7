"""The flags of ``python -m pyro_vae.train`` and the defaults beneath them.

The defaults are those of the model, a file (``--config``) or a run (``--resume``).
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
from pyro_vae.models.registry import MODELS, PARTS, model_settings
from pyro_vae.networks.mlp import ACTIVATIONS
from pyro_vae.runs import sweep
from pyro_vae.runs.config import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from pyro_vae.runs.directory import Checkpoint, RunDirectory, resuming
from pyro_vae.schedules import RAMPS

#: Keys in which a resumed run may differ from the run as it began.
FREE = frozenset(
    {"epochs", "patience", "num_samples", "num_workers", "data_dir", "download", "check_every", "compile_draws"}
)

#: Flags that set the weight of the KL, in place of a model's default.
SETS_BETA = frozenset({"beta_sweep", *(name for name, control in CONTROLS.items() if not control.kind.takes_beta)})

#: The names that a flag takes, from the registries.
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
    """The command itself: where it writes, computes and prints."""

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
    """The values of the command line, by group."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"group": "training"})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"group": "evaluation"})
    run: Options = field(default_factory=Options)


def read(words: Sequence[str], description: str | None = None) -> Values:
    """Read the flags, or print the help they ask for and exit.

    Args:
        words: The words of the command line.
        description: The text of ``--help`` above the flags.

    Returns:
        The values of the flags that are given, by field.

    Raises:
        ValueError: If a flag is unknown, or its value is not of the right type.
    """
    given = _parser(Arguments(), description).read(words)
    if given.pop("help", False):
        _parser(_model_defaults(given), description).print_help()
        sys.exit(0)
    return given


def _parser(default: Arguments, description: str | None) -> Parser:
    return Parser(default, "python -m pyro_vae.train", description, NAMES)


def complete(given: Values) -> tuple[Config, Options, Checkpoint | None]:
    """Complete the flags by the defaults beneath them.

    Args:
        given: The flags, see :func:`read`.

    Returns:
        The configuration, the options, and the checkpoint to resume from or None.

    Raises:
        ValueError: If the run or file cannot be read, or a resumed run is changed in other keys than ``FREE``.
    """
    folder, file, checkpoint = given.get("resume"), given.get("config"), None
    if folder is not None and file is not None:
        raise ValueError(
            "--config: expected without --resume, which takes the settings of that run, got both; drop one."
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
    """:func:`read` and :func:`complete` a command line."""
    return complete(read(words))


def check_resumed(config: Config, before: Config, folder: Path) -> None:
    """Refuse to resume a run with another configuration.

    A file or folder of data may have moved: it is compared when it is read.

    Raises:
        ValueError: If something else than ``FREE`` differs.
    """
    named = {config.data.dataset, before.data.dataset} & NAMED.keys()
    if changed := config.differences(before, FREE if named else FREE | {"dataset"}):
        raise ValueError(
            f"{resuming(folder)}: expected the configuration of that run, got {', '.join(changed)}; leave these flags out, or "
            "start a new run."
        )


def _arguments(config: Config) -> Arguments:
    return Arguments(config.data, config.model, config.train, config.evaluate)


def _model_defaults(given: Values) -> Arguments:
    """The defaults of the flags with the model that is given."""
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
            f"model {model}: expected `defaults` for flags of the data and of training, got {next(iter(defaults))!r}; correct "
            "the class."
        )
    try:
        Config.from_dict({"data": data, "train": training})
    except ValueError as error:
        raise ValueError(f"model {model}.defaults: {error}") from None
    return Arguments(data=DataConfig(**data), train=TrainConfig(**training))


def _located(data: DataConfig) -> DataConfig:
    """Make paths absolute, for a run that is resumed from another folder."""
    path = data.dataset not in NAMED and is_path(data.dataset)
    return dataclasses.replace(
        data,
        dataset=os.path.abspath(Path(data.dataset).expanduser()) if path else data.dataset,
        data_dir=str(Path(data.data_dir).expanduser().resolve()) if data.data_dir else data.data_dir,
    )
