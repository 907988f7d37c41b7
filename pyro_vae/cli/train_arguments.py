"""The command line of ``python -m pyro_vae.train``: its flags, over the configuration of a run, a file or a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_vae.cli import parser
from pyro_vae.data.files.open import is_path
from pyro_vae.data.named.registry import NAMED
from pyro_vae.models.registry import model_settings
from pyro_vae.runs import sweep
from pyro_vae.runs.config import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from pyro_vae.runs.directory import RunDirectory, resuming

#: What may differ between a run and its continuation.
FREE = frozenset(
    {"epochs", "patience", "num_samples", "num_workers", "data_dir", "download", "check_every", "compile_draws"}
)

#: What sets the weight of the KL, in place of the one that a model wants.
SETS_BETA = frozenset({"--beta-sweep", "--capacity", "--target-rate"})


@dataclass(frozen=True)
class Options:
    """How the command runs; not a part of what the run is."""

    run_dir: Path | None = None
    """Folder for the run's files; default: a new one under runs/."""
    config: Path | None = None
    """Settings to begin with, as in the config.json of a run; other flags go before it."""
    beta_sweep: tuple[float, ...] = ()
    """Train once for each of these weights of the KL, and draw the rate-distortion curve; the same command again goes on with
    a sweep that was interrupted."""
    resume: Path | None = None
    """Go on with this run; --epochs is the total."""
    overwrite: bool = False
    """Whether to replace the run that --run-dir holds."""
    device: str = "auto"
    """auto (a GPU where one works), cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; default: as many as this process may use."""
    quiet: bool = False
    """Print nothing but errors."""
    version: bool = False
    """Print the version and leave."""


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: Annotated[TrainConfig, tyro.conf.arg(name="training")] = field(default_factory=TrainConfig)
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="evaluation")] = field(default_factory=EvaluateConfig)
    run: Options = field(default_factory=Options)


def parse(argv: Sequence[str], description: str | None = None) -> tuple[Config, Options, dict[str, Any] | None]:
    """Read the command line; with ``--resume``, over the configuration of that run.

    Args:
        argv: Its words.
        description: What ``--help`` says of the command.

    Returns:
        The configuration, the options, and the checkpoint to go on from or None.

    Raises:
        ValueError: If the run to be resumed cannot be read, or something else than ``FREE`` differs from it.
    """
    checkpoint = None
    default = Arguments()
    folder, settings, model = (value_of(flag, argv) for flag in ("--resume", "--config", "--model"))
    if folder is not None and settings is not None:
        raise ValueError(
            "--config: expected without --resume, which takes the settings of that run, got both; drop one."
        )
    if settings is not None:
        given = Config.read(settings)
        default = Arguments(given.data, given.model, given.train, given.evaluate)
    if folder is not None:
        checkpoint, before = RunDirectory(folder).begun()
        default = Arguments(before.data, before.model, before.train, before.evaluate)
    flags = {word.partition("=")[0].replace("_", "-") for word in argv}
    sweeping = "--beta-sweep" in flags
    if folder is None and settings is None and model is not None:
        default = _wanted(str(model), ("beta",) if flags & SETS_BETA else ())
    args = parser.parse(Arguments, argv, default, prog="python -m pyro_vae.train", description=description)
    evaluate = args.evaluate
    if evaluate.compile_draws is None and "--no-compile" in flags:
        evaluate = dataclasses.replace(evaluate, compile_draws=False)
    config = Config(_located(args.data), args.model, args.train, evaluate)
    if sweeping and not args.run.beta_sweep:
        sweep.check((), config)
    if folder is not None and (changed := config.differences(before, FREE | _moved(config, before))):
        raise ValueError(
            f"{resuming(folder)}: expected the configuration of that run, got {', '.join(changed)}; leave these flags out, or "
            "start a new run."
        )
    return config, args.run, checkpoint


def _wanted(model: str, besides: Sequence[str]) -> Arguments:
    """What flags that are not there stand for with a model that has ``defaults``, but for some."""
    wanted = {name: value for name, value in model_settings(model).items() if name not in besides}
    data, training = (
        {f.name: wanted.pop(f.name) for f in dataclasses.fields(section) if f.name in wanted}
        for section in (DataConfig, TrainConfig)
    )
    if wanted:
        raise ValueError(
            f"model {model}: expected `defaults` for flags of the data and of training, got {next(iter(wanted))!r}; correct "
            "the class."
        )
    try:
        Config.from_dict({"data": data, "train": training})
    except ValueError as error:
        raise ValueError(f"model {model}.defaults: {error}") from None
    return Arguments(data=DataConfig(**data), train=TrainConfig(**training))


def _moved(config: Config, before: Config) -> frozenset[str]:
    """A file or folder may be at another place than it was; whether it is still the same is seen when it is read."""
    named = {config.data.dataset, before.data.dataset} & NAMED.keys()
    return frozenset() if named else frozenset({"dataset"})


def _located(data: DataConfig) -> DataConfig:
    """With absolute paths, so that the run can be resumed and evaluated from another folder."""
    path = data.dataset not in NAMED and is_path(data.dataset)
    return dataclasses.replace(
        data,
        dataset=os.path.abspath(Path(data.dataset).expanduser()) if path else data.dataset,
        data_dir=str(Path(data.data_dir).expanduser().resolve()) if data.data_dir else data.data_dir,
    )


def value_of(flag: str, argv: Sequence[str]) -> Path | None:
    """The path after the last ``flag``, which is the one that counts: it is needed before the rest can be read."""
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == flag and following and not following.startswith("--"):
            value = Path(following)
        elif word.startswith(f"{flag}="):
            value = Path(word.removeprefix(f"{flag}="))
    return value
