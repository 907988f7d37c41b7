"""The run directory: configuration, metrics, checkpoint, summary; made, written, resumed and loaded."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_vae import data as data_module
from pyro_vae.config import Config
from pyro_vae.data import Data
from pyro_vae.files import write_atomically
from pyro_vae.inference.training import History, Training
from pyro_vae.models import VAE

SCHEMA = 1
PICTURES = ("reconstructions", "samples", "interpolations", "curves", "latents", "grid")
FILES = ("config.json", "metrics.csv", "checkpoint.pt", "summary.json", *(f"{name}.png" for name in PICTURES))


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path | None, name: str, overwrite: bool = False) -> RunDirectory:
        """Make the folder of a new run.

        Args:
            path: Where, or None for ``runs/NAME-DATE-TIME``.
            name: What the run is called there; other characters than letters and digits become hyphens.
            overwrite: Whether the run files of an existing folder may be removed.

        Raises:
            ValueError: If the folder holds something and ``overwrite`` is False, or it cannot be made.
        """
        if path is None:
            return cls(_fresh_folder(Path("runs"), name))
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()) and not overwrite:
                raise ValueError(
                    f"run directory {folder}: expected a new or empty folder, got one with files in it; pass --resume "
                    f"{folder} to go on, --overwrite to replace its run, or another --run-dir."
                )
        except OSError as error:
            raise ValueError(f"run directory {folder}: expected a folder that can be written, got {error}.") from None
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        return cls(folder)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file; numbers that are not finite are refused."""
        text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(self.path / name, (text + "\n").encode())

    def save(self, training: Training, config: Config, seconds: float) -> None:
        """Write ``checkpoint.pt`` and ``metrics.csv``.

        Args:
            training: What a callback of ``fit`` gets.
            config: What the run is.
            seconds: How long it has been trained, in all its sessions.
        """
        buffer = io.BytesIO()
        checkpoint = {
            "schema": SCHEMA,
            "config": config.to_dict(),
            "data_shape": list(training.data.data_shape),
            "seconds": seconds,
            "training": training.state_dict(),
        }
        torch.save(checkpoint, buffer)
        write_atomically(self.path / "checkpoint.pt", buffer.getvalue())
        write_atomically(self.path / "metrics.csv", _csv(training.history).encode())

    def read_checkpoint(self) -> dict[str, Any]:
        """Read ``checkpoint.pt`` without running any code in it, onto the CPU.

        Raises:
            ValueError: If there is none, or it cannot be read.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            raise ValueError(
                f"run {self.path}: expected a folder with checkpoint.pt, got none there; name a run's folder."
            )
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are no checkpoint fail in any way, down to IndexError
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path}: expected a checkpoint of pyro_vae, got a file that cannot be read ({reason})."
            ) from None
        checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
        if checkpoint.get("schema") != SCHEMA:
            found = checkpoint.get("schema")
            raise ValueError(f"{path}: expected a checkpoint of schema {SCHEMA}, got {found}; train it again.")
        if missing := {"config", "data_shape", "seconds", "training"} - checkpoint.keys():
            raise ValueError(f"{path}: expected a whole checkpoint, got one without {sorted(missing)}; train it again.")
        return checkpoint

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run; empty if it is not there."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _fresh_folder(parent: Path, name: str) -> Path:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)  # fails if it exists: two runs of one second do not share a folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"run directory {folder}: expected a folder that can be made, got {error}.") from None
        return folder
    raise ValueError(f"run directory {parent / stem}: expected a free name, got 999 taken; pass --run-dir.")


def _csv(history: History) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(history.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.rows)
    return out.getvalue()


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, in memory.

    Attributes:
        path: Its folder.
        config: What it is.
        vae: The model with the parameters of the best epoch, on the CPU, in eval mode.
        history: A row an epoch.
        seconds: How long it was trained.
    """

    path: Path
    config: Config
    vae: VAE
    history: History
    seconds: float

    def data(self) -> Data:
        """The very data of the run: same split, same binarized test images."""
        return load_data(self.config)

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
    )


def make_vae(config: Config, data_shape: tuple[int, ...]) -> VAE:
    """The model that a configuration names."""
    m = config.model
    return VAE(data_shape, m.latent_dim, m.hidden, m.activation, likelihood=m.likelihood)


def load(path: str | Path) -> Run:
    """Load a run; one made on a GPU loads on a CPU, and no code in its files is run.

    Args:
        path: The run's folder.

    Raises:
        ValueError: If there is no run, or its files cannot be read.
    """
    checkpoint = RunDirectory(Path(path)).read_checkpoint()
    config = Config.from_dict(checkpoint["config"])
    training = checkpoint["training"]
    vae = make_vae(config, tuple(checkpoint["data_shape"]))
    vae.load_state_dict(training["best"] or training["model"])
    vae.eval()
    done = "epochs" if len(training["rows"]) >= config.train.epochs else "interrupted"
    history = History(training["rows"], training["stop_reason"] or done)
    return Run(Path(path), config, vae, history, checkpoint["seconds"])
