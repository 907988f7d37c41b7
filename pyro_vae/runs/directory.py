"""The folder of a run: its files, written whole and read again."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.named.registry import NAMED
from pyro_vae.errors import first_line
from pyro_vae.inference.training.checkpoint import check_keys
from pyro_vae.inference.training.history import Row
from pyro_vae.inference.training.training import Training
from pyro_vae.report.names import LABEL_PICTURES, PICTURES
from pyro_vae.runs.config import Config
from pyro_vae.system.files import LOCK, check_writable, dated_folder, leftovers, locked, run_folder, write_atomically

SCHEMA = 2


#: The keys of a checkpoint and what they hold.
KEYS: dict[str, tuple[type, ...]] = {
    "pyro_vae": (str,),
    "config": (dict,),
    "data": (dict,),
    "seconds": (float, int),
    "training": (dict,),
}


#: Every file that training may write.
EVERY_FILE = ("config.json", "metrics.csv", "checkpoint.pt", "summary.json", *(f"{name}.png" for name in PICTURES))
#: The files of a run whose model takes no labels.
FILES = tuple(name for name in EVERY_FILE if name.removesuffix(".png") not in LABEL_PICTURES)


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
        path: The folder.
        writes: Whether this process writes there; of several that train together only one does.
    """

    path: Path
    writes: bool = True

    @classmethod
    @contextmanager
    def claim(
        cls, path: str | Path | None, name: str, overwrite: bool = False, needed: int = 0
    ) -> Iterator[RunDirectory]:
        """Make the folder of a new run, and keep other processes from it; it is removed again if nothing is put there.

        Args:
            path: Where, or None for ``runs/NAME-DATE-TIME``.
            name: What the run is called there; other characters than letters and digits become hyphens.
            overwrite: Whether the run files of an existing folder may be removed.
            needed: How many bytes the run will write.

        Raises:
            ValueError: If the folder holds something and ``overwrite`` is False, is in use, cannot be made or written, or
                its disk is too full.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(dated_folder(Path("runs"), name) if path is None else run_folder(Path(path)))
            directory = cls(folder)
            stack.enter_context(locked(folder))
            if directory._others() and not overwrite:
                raise ValueError(
                    f"run directory {folder}: expected a new or empty folder, got one with files in it; pass "
                    f"{resuming(folder)} to go on, --overwrite to replace its run, or another --run-dir."
                )
            check_writable(folder, needed)
            for file in [*leftovers(folder, EVERY_FILE), *(folder / name for name in EVERY_FILE)]:
                file.unlink(missing_ok=True)
            yield directory

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from the folder of a run, if it is there.

        Raises:
            ValueError: If it is in use.
        """
        with locked(self.path) if self.path.is_dir() else nullcontext():
            yield

    def reopen(self, needed: int = 0) -> None:
        """See whether a run can go on in its folder, and remove what a kill may have left there.

        Args:
            needed: How many bytes the run will write.

        Raises:
            ValueError: If the folder cannot be written, or its disk is too full.
        """
        checkpoint = self.path / "checkpoint.pt"
        check_writable(self.path, needed - (checkpoint.stat().st_size if checkpoint.is_file() else 0))
        for file in leftovers(self.path, EVERY_FILE):
            file.unlink(missing_ok=True)

    def _others(self) -> list[Path]:
        """What the folder holds besides the lock and what a kill left behind."""
        ours = {self.path / LOCK, *leftovers(self.path, EVERY_FILE)}
        return [path for path in self.path.iterdir() if path not in ours]

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file; numbers that are not finite are refused."""
        text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
        # Surrogates: file names that this locale cannot read.
        self._write(name, (text + "\n").encode("utf-8", "surrogateescape"))

    def _write(self, name: str, content: bytes) -> None:
        if self.writes:
            write_atomically(self.path / name, content)

    def save(self, training: Training, config: Config, seconds: float, fingerprint: dict[str, Any]) -> None:
        """Write ``checkpoint.pt`` and ``metrics.csv``; all processes of a job must ask for it.

        Args:
            training: What a callback of ``fit`` gets.
            config: What the run is.
            seconds: How long it has been trained, in all its sessions.
            fingerprint: What tells its data from others.
        """
        checkpoint = {
            "schema": SCHEMA,
            "pyro_vae": version("pyro-vae"),
            "config": config.to_dict(),
            "data": fingerprint,
            "seconds": seconds,
            "training": training.state_dict(),
        }
        if self.writes:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            self._write("checkpoint.pt", buffer.getvalue())
        self.write_metrics(training.history.rows)

    def write_metrics(self, rows: list[Row]) -> None:
        """Write ``metrics.csv``, as soon as there is a whole epoch to write."""
        if rows:
            out = io.StringIO()
            writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            self._write("metrics.csv", out.getvalue().encode())

    def read_checkpoint(self) -> dict[str, Any]:
        """Read ``checkpoint.pt`` without running any code in it, onto the CPU.

        Raises:
            ValueError: If there is none, or it cannot be read, or another version wrote it.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            raise ValueError(
                f"run {self.path}: expected a folder with checkpoint.pt, got none there; name a run's folder."
            )
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are no checkpoint fail in any way, down to IndexError
            raise ValueError(
                f"{path}: expected a checkpoint of pyro_vae, got a file that cannot be read ({first_line(error):.200}); take "
                "another run, or train it again."
            ) from None
        checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
        if checkpoint.get("schema") != SCHEMA:
            raise ValueError(
                f"{path}: expected a checkpoint of schema {SCHEMA} (pyro_vae {version('pyro-vae')}), got schema "
                f"{checkpoint.get('schema')!r} (pyro_vae {checkpoint.get('pyro_vae', 'unknown')!s:.20}); take that version, or "
                "train it again."
            )
        check_keys(checkpoint, KEYS, str(path))
        data = checkpoint["data"]
        shape, numbers = data.get("data_shape"), [value for key, value in data.items() if key != "data_shape"]
        if not isinstance(shape, list) or not all(isinstance(number, int) for number in [*shape, *numbers]):
            raise ValueError(f"{path}: expected the shape and numbers of its data, got something else; train it again.")
        if not (math.isfinite(checkpoint["seconds"]) and checkpoint["seconds"] >= 0):
            raise ValueError(f"{path}: expected the seconds of training, got {checkpoint['seconds']}; train it again.")
        return checkpoint

    def begun(self) -> tuple[dict[str, Any] | None, Config]:
        """Checkpoint and configuration of a run to go on with; None and ``config.json`` if it had no checkpoint yet.

        Raises:
            ValueError: If there is neither, or they cannot be read.
        """
        if (self.path / "config.json").is_file() and not (self.path / "checkpoint.pt").exists():
            return None, self.config_of(self.read_json("config.json"))
        checkpoint = self.read_checkpoint()
        return checkpoint, self.config_of(checkpoint["config"])

    def config_of(self, values: Any) -> Config:
        """A configuration from what a file of the run says, without a seed of labels that was said where none were chosen.

        Such a seed did nothing, and is refused of a new run.

        Raises:
            ValueError: If something in it is wrong.
        """
        try:
            found = Config.from_dict(values)
            chosen = found.data.labels is not None
            return found if chosen else dataclasses.replace(found, data=dataclasses.replace(found.data, label_seed=0))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"run {self.path}: {first_line(error)}") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run; empty if it is not there.

        Raises:
            ValueError: If it is no JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: expected a JSON file, got one that cannot be read ({first_line(error)})."
            ) from None


def resuming(folder: Path) -> str:
    """The flag by which the run in a folder goes on, as a shell takes it."""
    return f"--resume {shlex.quote(str(folder))}"


def run_name(config: Config) -> str:
    """Name of a new run: data, model and objective."""
    data, model = config.data.dataset, config.model.model.rpartition(":")[2]
    words = [data if data in NAMED else Path(data).stem, *([] if model == "vae" else [model]), config.train.elbo]
    return "-".join(words)
