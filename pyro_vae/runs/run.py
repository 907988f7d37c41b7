"""A run, loaded from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.data import Data
from pyro_vae.inference.training.history import History
from pyro_vae.runs.build import load_data, saved_vae
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import Json, RunDirectory


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, in memory.

    Attributes:
        path: The run's folder.
        config: The run's configuration.
        vae: The model with the parameters of the best epoch, on the CPU, in eval mode.
        history: A row for each epoch.
        seconds: Training time in all sessions, seconds.
        fingerprint: Shape, sizes and checksums that identify the data.
    """

    path: Path
    config: Config
    vae: Any  # a PyroModel, untyped so that a user's type checker accepts further methods such as encode
    history: History
    seconds: float
    fingerprint: Mapping[str, object]

    def data(self) -> Data:
        """Load the data of the run, split and binarized as in training.

        Raises:
            ValueError: If the data cannot be found, or have changed since training.
        """
        data = load_data(self.config)
        check_data(self.fingerprint, data.fingerprint(), f"run {self.path}")
        return data

    @property
    def summary(self) -> Json:
        """Contents of ``summary.json``; an empty dict before the first evaluation."""
        return RunDirectory(self.path).read_json("summary.json")


def check_data(expected: Mapping[str, object], found: Mapping[str, object], where: str) -> None:
    """Refuse data that differ from the data of a run.

    Args:
        expected: The fingerprint of the data in the run's checkpoint.
        found: The fingerprint of the data that were loaded.
        where: The first words of the error message.

    Raises:
        ValueError: If the fingerprints differ; the error message names the difference.
    """
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if not keys:
        return
    checksums = {"checksum_": "pixels", "labels_": "labels"}
    sizes = [f"{key} {found.get(key)} (there {expected.get(key)})" for key in keys if not key.startswith((*checksums,))]
    values = [
        f"other {noun} in the {key.removeprefix(prefix)} data"
        for key in keys
        for prefix, noun in checksums.items()
        if key.startswith(prefix)
    ]
    raise ValueError(
        f"{where}: expected the data that the run was trained on, got {', '.join(sizes or values)}; restore the original "
        "data, or start a new run."
    )


def load(path: str | Path) -> Run:
    """Load a run onto the CPU; no code in its files runs.

    If the configuration names a user's class, that class is imported from Python's module path. The model has the best
    parameters of the training. Without validation data, or if the first epoch was interrupted, it has the last parameters.

    Args:
        path: The run's folder.

    Returns:
        The run.

    Raises:
        ValueError: If the folder has no run, or a file of the run cannot be read.
    """
    directory = RunDirectory(Path(path))
    vae, config, checkpoint = saved_vae(directory)
    training = checkpoint["training"]
    stopped_by = "epochs" if len(training["rows"]) >= config.train.epochs else "interrupted"
    history = History(training["rows"], training["stop_reason"] or stopped_by, training["step"], training["compiled"])
    return Run(directory.path, config, vae, history, checkpoint["seconds"], checkpoint["data"])
