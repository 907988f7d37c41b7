"""The rate-distortion curve of one architecture: a run for each weight of the KL, one table and one plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.models.registry import model_class
from pyro_vae.runs.config import Config
from pyro_vae.system.files import write_atomically

TABLE, PICTURE = "sweep.csv", "sweep.png"
COLUMNS = ("beta", "rate", "distortion", "elbo", "elbo_std_error", "log_px", "log_px_std_error", "active_units", "run")


def check(betas: Sequence[float], config: Config) -> None:
    """Refuse weights that make no curve.

    Raises:
        ValueError: If there are fewer than two, one is not a finite number of at least 0, one is there twice, or ``beta`` is
            set beside them.
    """
    if len(betas) < 2 or len(set(betas)) < len(betas):
        raise ValueError(
            f"beta_sweep: expected at least two different weights, such as 0.1 0.5 1 2 4 8, got "
            f"{' '.join(f'{beta:g}' for beta in betas) or 'none'}."
        )
    for beta in betas:
        if not math.isfinite(beta) or beta < 0:
            raise ValueError(f"beta_sweep: expected finite numbers of at least 0, got {beta}.")
    if not getattr(model_class(config.model.model), "has_bound", True):
        raise ValueError(
            f"beta_sweep: expected a model with a rate and a distortion, got --model {config.model.model}, which has no bound; "
            "take a vae."
        )
    if config.train.beta != 1.0:
        raise ValueError(f"beta: expected without --beta-sweep, which sets it, got {config.train.beta}; drop one.")


def name_of(beta: float) -> str:
    """Name of the folder of one weight: letters, digits and hyphens."""
    return f"beta-{beta:g}".replace(".", "-").replace("+", "")


def with_beta(config: Config, beta: float) -> Config:
    """The same run under another weight."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, beta=beta))


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but a sweep.

    Raises:
        ValueError: If it does.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    strange = [name for name in names if not name.startswith("beta-") and name not in (TABLE, PICTURE)]
    if strange:
        raise ValueError(
            f"run directory {folder}: expected a new folder or that of a sweep, got one with {strange[0]} in it; take another "
            "--run-dir."
        )


def finished(folder: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a run that is finished, or None.

    Raises:
        ValueError: If it is that of another configuration.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return None
    chosen = frozenset({"compile"} if config.train.compile is None else ())  # when the run began, and kept with it
    if changed := config.differences(Config.read(folder / "config.json"), chosen):
        raise ValueError(
            f"run directory {folder}: expected a run of this sweep, got one with {', '.join(changed)}; take another "
            "--run-dir, or --overwrite it."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def row_of(beta: float, summary: dict[str, Any], run: str) -> dict[str, Any]:
    """A row of the table, from the summary of a run: bounds are the true ones, nats per datum."""
    test = summary["test"]
    return {
        "beta": beta,
        "rate": test["rate"],
        "distortion": test["distortion"],
        "elbo": test["elbo"]["value"],
        "elbo_std_error": test["elbo"]["std_error"],
        "log_px": test["log_px"]["value"],
        "log_px_std_error": test["log_px"]["std_error"],
        "active_units": test["active_units"],
        "run": run,
    }


def write(folder: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Write table and plot, each whole."""
    from pyro_vae.report.figures.sweep import rate_distortion
    from pyro_vae.report.pictures import write_figure

    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / TABLE, out.getvalue().encode())
    write_figure(folder / PICTURE, rate_distortion(rows, title))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The curve as lines for the terminal."""
    head = "     beta       rate   distortion         ELBO     log p(x)   active units"
    unit = "                nats         nats         nats         nats"
    lines = [
        f"{row['beta']:9g} {row['rate']:10.3f} {row['distortion']:12.3f} {row['elbo']:12.3f} {row['log_px']:12.3f} "
        f"{row['active_units']!s:>14}"
        for row in rows
    ]
    return "\n".join([head, unit, *lines])
