"""Runs: their data and their models, made of a configuration, and loaded again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae import data as data_module
from pyro_vae.config import Config, ModelConfig
from pyro_vae.data import Data
from pyro_vae.inference.history import History
from pyro_vae.inference.state import check_state
from pyro_vae.models.registry import ARGUMENTS, make, model_class, parameters
from pyro_vae.run_directory import EVERY_FILE, FILES, PICTURES, SCHEMA, RunDirectory, reason

__all__ = [
    "EVERY_FILE",
    "FILES",
    "PICTURES",
    "SCHEMA",
    "Run",
    "RunDirectory",
    "check_data",
    "load",
    "load_data",
    "make_vae",
]


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, in memory.

    Attributes:
        path: Its folder.
        config: What it is.
        vae: The model with the parameters of the best epoch, on the CPU, in eval mode.
        history: A row an epoch.
        seconds: How long it was trained.
        fingerprint: What tells its data from others.
    """

    path: Path
    config: Config
    vae: Any
    history: History
    seconds: float
    fingerprint: dict[str, Any]

    def data(self) -> Data:
        """The very data of the run: same split, same binarized test images.

        Raises:
            ValueError: If they cannot be found, or have changed since.
        """
        data = load_data(self.config)
        check_data(self.fingerprint, data.fingerprint(), f"run {self.path}")
        return data

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds; empty if the run has not been evaluated."""
        return RunDirectory(self.path).read_json("summary.json")


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
    taken = parameters(model_class(m.model))
    for name in ARGUMENTS[1:]:
        if name not in taken and values[name] != usual[name]:
            raise ValueError(
                f"{name}: expected with a model that takes it, got {values[name]!r} with --model {m.model}; drop it."
            )
    return make(m.model, {"data_shape": data_shape, **values}, m.model_options)


def check_data(expected: dict[str, Any], found: dict[str, Any], where: str) -> None:
    """Refuse other data than those of a run.

    Args:
        expected: The fingerprint in the run's checkpoint.
        found: That of the data at hand.
        where: What the sentence begins with.

    Raises:
        ValueError: If they differ; it says in what.
    """
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    sums = {"checksum_": "pixels", "labels_": "labels"}
    sizes = [f"{key} {found.get(key)} (there {expected.get(key)})" for key in keys if not key.startswith((*sums,))]
    pixels = [
        f"other {what} in the {key.removeprefix(prefix)} data"
        for key in keys
        for prefix, what in sums.items()
        if key.startswith(prefix)
    ]
    if keys:
        raise ValueError(
            f"{where}: expected the data that it was trained on, got {', '.join(sizes or pixels)}; put these data back, or "
            "start a new run."
        )


def load(path: str | Path) -> Run:
    """Load a run; one made on a GPU loads on a CPU, and no code in its files is run.

    Classes of a user's, which its configuration names, are imported from where Python finds modules.

    Of a run that was interrupted within its first epoch, or has no validation data, it gives the last parameters.

    Args:
        path: The run's folder.

    Raises:
        ValueError: If there is no run, or its files cannot be read.
    """
    directory = RunDirectory(Path(path))
    checkpoint = directory.read_checkpoint()
    config, training = directory.config_of(checkpoint["config"]), checkpoint["training"]
    where = str(directory.path / "checkpoint.pt")
    try:
        vae = make_vae(config, tuple(checkpoint["data"]["data_shape"]))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: expected the configuration of a model, got {reason(error)}") from None
    check_state(training, vae, where)
    vae.load_state_dict(training["best"] or training["model"])
    vae.eval()
    done = "epochs" if len(training["rows"]) >= config.train.epochs else "interrupted"
    history = History(training["rows"], training["stop_reason"] or done, training["step"], training["compiled"])
    return Run(directory.path, config, vae, history, checkpoint["seconds"], checkpoint["data"])
