"""The folder of a run, and the files in it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from pyro_vae.data.named.registry import NAMED
from pyro_vae.errors import first_line
from pyro_vae.inference.training.checkpoint import State, check_keys
from pyro_vae.inference.training.history import Row
from pyro_vae.inference.training.training import Training
from pyro_vae.report.picture_names import LABEL_PICTURES, PICTURES
from pyro_vae.runs.config import Config
from pyro_vae.system.files import LOCK, check_writable, dated_folder, leftovers, locked, run_folder, write_atomically
from pyro_vae.system.version import package_version

#: Version of the format of ``checkpoint.pt``.
SCHEMA = 2

#: Contents of a JSON file: nested plain containers.
Json = dict[str, Any]


class Checkpoint(TypedDict):
    """Contents of ``checkpoint.pt``.

    Attributes:
        schema: Version of the checkpoint's format, :data:`SCHEMA`.
        pyro_vae: Version of the package that wrote the checkpoint.
        config: The configuration, from :meth:`Config.to_dict`.
        data: The fingerprint of the data.
        seconds: Training time in all sessions, seconds.
        training: The state of the training, from :meth:`Training.state_dict`.
    """

    schema: int
    pyro_vae: str
    config: Json
    data: Json
    seconds: float
    training: State


#: Types of the values that a checkpoint must have.
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
    """The files of a run.

    Attributes:
        path: The folder.
        writes: True if this process writes to the folder. Only one of several data-parallel processes writes.
    """

    path: Path
    writes: bool = True

    @classmethod
    @contextmanager
    def claim(
        cls, path: str | Path | None, name: str, overwrite: bool = False, needed: int = 0
    ) -> Iterator[RunDirectory]:
        """Make and lock the folder of a new run.

        A folder that stays empty is removed at the end.

        Args:
            path: The folder; None: ``runs/NAME-DATE-TIME``.
            name: The NAME in the default folder; characters other than letters and digits become hyphens.
            overwrite: If the folder exists, remove the files of the run in it.
            needed: Number of bytes that the run will write.

        Raises:
            ValueError: If the folder has files and ``overwrite`` is False, if the folder is in use or cannot be made or
                written, or if the disk is too full.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(dated_folder(Path("runs"), name) if path is None else run_folder(Path(path)))
            directory = cls(folder)
            stack.enter_context(locked(folder))
            if directory._other_files() and not overwrite:
                raise ValueError(
                    f"run directory {folder}: expected a new or empty folder, got one with files; pass {resuming(folder)} to "
                    "continue, --overwrite to replace the run, or another --run-dir."
                )
            check_writable(folder, needed)
            for file in [*leftovers(folder, EVERY_FILE), *(folder / name for name in EVERY_FILE)]:
                file.unlink(missing_ok=True)
            yield directory

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder of a run, if it exists.

        Raises:
            ValueError: If the folder is in use.
        """
        with locked(self.path) if self.path.is_dir() else nullcontext():
            yield

    def reopen(self, needed: int = 0) -> None:
        """Check that the run can continue; remove temporary files of killed processes.

        Args:
            needed: Number of bytes that the run will write.

        Raises:
            ValueError: If the folder cannot be written, or the disk is too full.
        """
        checkpoint = self.path / "checkpoint.pt"
        check_writable(self.path, needed - (checkpoint.stat().st_size if checkpoint.is_file() else 0))
        for file in leftovers(self.path, EVERY_FILE):
            file.unlink(missing_ok=True)

    def _other_files(self) -> list[Path]:
        """List all files except the lock and temporary files."""
        ours = {self.path / LOCK, *leftovers(self.path, EVERY_FILE)}
        return [path for path in self.path.iterdir() if path not in ours]

    def write_json(self, name: str, values: Mapping[str, object]) -> None:
        """Write values into a JSON file of the run.

        Raises:
            ValueError: If a number in the values is not finite.
        """
        text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
        # A file name may have bytes that are no text; surrogates stand for them.
        self._write(name, (text + "\n").encode("utf-8", "surrogateescape"))

    def _write(self, name: str, content: bytes) -> None:
        if self.writes:
            write_atomically(self.path / name, content)

    def save(self, training: Training, config: Config, seconds: float, fingerprint: dict[str, object]) -> None:
        """Write ``checkpoint.pt`` and ``metrics.csv``.

        Every data-parallel process must call this method.

        Args:
            training: The training state that ``fit`` passes to its callbacks.
            config: The configuration.
            seconds: Training time in all sessions, seconds.
            fingerprint: The fingerprint of the data.
        """
        checkpoint: Checkpoint = {
            "schema": SCHEMA,
            "pyro_vae": package_version(),
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
        """Write ``metrics.csv`` if at least one epoch is complete."""
        if rows:
            out = io.StringIO()
            writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            self._write("metrics.csv", out.getvalue().encode())

    def read_checkpoint(self) -> Checkpoint:
        """Read ``checkpoint.pt`` onto the CPU; no code in the file runs.

        Raises:
            ValueError: If the file is missing, cannot be read, or was written by another version.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            raise ValueError(f"run {self.path}: checkpoint.pt is missing; name the folder of a run.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # for bytes that are no checkpoint, torch.load raises any error, even IndexError
            raise ValueError(
                f"{path}: expected a checkpoint of pyro_vae, got a file that cannot be read ({first_line(error):.200}); name "
                "another run, or train this run again."
            ) from None
        return _checked(content if isinstance(content, dict) else {}, path)

    def begun(self) -> tuple[Checkpoint | None, Config]:
        """Read the checkpoint and the configuration of a run to resume.

        Returns:
            The checkpoint, or None if there is none yet, and the configuration.

        Raises:
            ValueError: If both files are missing, or a file cannot be read.
        """
        if (self.path / "config.json").is_file() and not (self.path / "checkpoint.pt").exists():
            return None, self.config_of(self.read_json("config.json"))
        checkpoint = self.read_checkpoint()
        return checkpoint, self.config_of(checkpoint["config"])

    def config_of(self, values: Json) -> Config:
        """Make a configuration from the values in a file of the run.

        If there is a label seed but no number of labels, the label seed becomes 0. It has no effect, and a new run refuses
        this combination.

        Raises:
            ValueError: If a key or a value is wrong.
        """
        try:
            config = Config.from_dict(values)
            if config.data.labels is not None:
                return config
            return dataclasses.replace(config, data=dataclasses.replace(config.data, label_seed=0))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"run {self.path}: {first_line(error)}") from None

    def read_json(self, name: str) -> Json:
        """Read a JSON file of the run.

        Returns:
            The contents; an empty dict if the file is missing.

        Raises:
            ValueError: If the file is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: expected a JSON file, got a file that cannot be read ({first_line(error)})."
            ) from None


def _checked(content: Json, path: Path) -> Checkpoint:
    """Return the checkpoint; refuse an incomplete one or another version."""
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: expected a checkpoint of schema {SCHEMA} (pyro_vae {package_version()}), got schema "
            f"{content.get('schema')!r} (pyro_vae {content.get('pyro_vae', 'unknown')!s:.20}); install that version, or train "
            "the run again."
        )
    check_keys(content, KEYS, str(path))
    data, seconds = content["data"], content["seconds"]
    shape, numbers = data.get("data_shape"), [value for key, value in data.items() if key != "data_shape"]
    if not isinstance(shape, list) or not all(isinstance(number, int) for number in [*shape, *numbers]):
        raise ValueError(
            f"{path}: expected the shape, sizes and checksums of the data, got something else; train the run again."
        )
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(
            f"{path}: expected a training time in seconds, at least 0, got {seconds}; train the run again."
        )
    checkpoint: Any = content
    return checkpoint


def resuming(folder: Path) -> str:
    """Return the flag that resumes a run, quoted for a shell."""
    return f"--resume {shlex.quote(str(folder))}"


def run_name(config: Config) -> str:
    """Name a new run by its data, model and objective."""
    data, model = config.data.dataset, config.model.model.rpartition(":")[2]
    words = [data if data in NAMED else Path(data).stem, *([] if model == "vae" else [model]), config.train.elbo]
    return "-".join(words)
