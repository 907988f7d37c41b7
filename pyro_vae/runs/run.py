"""A run, loaded from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.data import Data
from pyro_vae.inference.training.history import History
from pyro_vae.runs.build import load_data, saved_vae
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import RunDirectory


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
    vae, config, checkpoint = saved_vae(directory)
    training = checkpoint["training"]
    done = "epochs" if len(training["rows"]) >= config.train.epochs else "interrupted"
    history = History(training["rows"], training["stop_reason"] or done, training["step"], training["compiled"])
    return Run(directory.path, config, vae, history, checkpoint["seconds"], checkpoint["data"])
