"""Sweep over the KL weight: runs, and their rate-distortion curve."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pyro_vae import parallel
from pyro_vae.models.registry import model_class
from pyro_vae.runs import pipeline
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import Json, RunDirectory, run_name
from pyro_vae.runs.progress import Console
from pyro_vae.system.files import dated_folder, run_folder, write_atomically

TABLE, PICTURE = "sweep.csv", "sweep.png"
COLUMNS = ("beta", "rate", "distortion", "elbo", "elbo_std_error", "log_px", "log_px_std_error", "active_units", "run")


def run(
    betas: Sequence[float],
    config: Config,
    folder: Path | None,
    overwrite: bool,
    console: Console,
    train: Callable[[Config, Path], None],
) -> None:
    """Train a run for each KL weight; write table and plot.

    The runs are points of the rate-distortion curve, which the plot shows.

    Args:
        betas: The KL weights.
        config: The configuration of all runs; only the KL weight differs.
        folder: The folder of the sweep; None: a new folder in ``runs``.
        overwrite: True to train finished runs again.
        console: Prints the table.
        train: Function that takes a configuration and a folder, and trains or resumes the run in this folder.

    Raises:
        ValueError: If there are several processes, or an error of :func:`check` or :func:`check_folder` occurs.
    """
    if (size := parallel.world().size) > 1:
        raise ValueError(
            f"--beta-sweep: expected one process, got {size}; train each weight by its own command with --beta."
        )
    check(betas, config)
    for beta in (min(betas), max(betas)):  # refuse bad input before anything is written
        plan = pipeline.prepare(with_beta(config, beta), torch.device("cpu"))
    training = dataclasses.replace(config.train, elbo=plan.config.train.elbo)
    config = dataclasses.replace(plan.config, train=training)  # the config.json of each run, except for beta
    name, rows = run_name(config), []
    with dated_folder(Path("runs"), f"{name}-sweep") if folder is None else run_folder(folder) as folder:
        check_folder(folder)
        for beta in sorted(betas):
            path = folder / name_of(beta)
            if overwrite or not finished(path, with_beta(config, beta)):
                train(with_beta(config, beta), path)
            rows.append(row_of(beta, RunDirectory(path).read_json("summary.json"), path.name))
        write(folder, rows, f"Rate and distortion: {name}")
        console.line(f"{table(rows)}\n{folder}: {TABLE}, {PICTURE}")


def check(betas: Sequence[float], config: Config) -> None:
    """Refuse KL weights and configurations that give no rate-distortion curve.

    Raises:
        ValueError: If there are fewer than two weights, if a weight is repeated, negative or not finite, if the model has no
            bound, or if the configuration also sets ``beta``.
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
            "choose a vae."
        )
    if config.train.beta != 1.0:
        raise ValueError(
            f"beta: --beta {config.train.beta} cannot be combined with --beta-sweep, which sets beta; remove one of the two."
        )


def name_of(beta: float) -> str:
    """Return a run's folder name, made from the KL weight.

    The name has only letters, digits and hyphens.
    """
    return f"beta-{beta:g}".replace(".", "-").replace("+", "")


def with_beta(config: Config, beta: float) -> Config:
    """Return the configuration with another KL weight."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, beta=beta))


def check_folder(folder: Path) -> None:
    """Refuse a folder with files that do not belong to a sweep.

    Raises:
        ValueError: If the folder holds such a file.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    strange = [name for name in names if not name.startswith("beta-") and name not in (TABLE, PICTURE)]
    if strange:
        raise ValueError(
            f"run directory {folder}: expected a new folder or the folder of a sweep, got one that holds {strange[0]}; pass "
            "another --run-dir."
        )


def finished(folder: Path, config: Config) -> bool:
    """Return True if the folder holds a finished run of this configuration.

    Raises:
        ValueError: If the folder holds a finished run of another configuration.
    """
    if not (folder / "summary.json").is_file():
        return False
    chosen = frozenset({"compile"} if config.train.compile is None else ())  # the run chose it when it began
    if changed := config.differences(Config.read(folder / "config.json"), chosen):
        raise ValueError(
            f"run directory {folder}: expected a run of this sweep, got a run with {', '.join(changed)}; pass another "
            "--run-dir, or --overwrite."
        )
    return True


def row_of(beta: float, summary: Json, run: str) -> Json:
    """Return a run's row of the sweep's table, made from the summary.

    Rate, distortion and bounds are computed at beta = 1, nats per datum.
    """
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


def write(folder: Path, rows: Sequence[Json], title: str) -> None:
    """Write the sweep's table (CSV) and plot (PNG)."""
    from pyro_vae.report.figures.sweep import rate_distortion
    from pyro_vae.report.pictures import write_figure

    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / TABLE, out.getvalue().encode())
    write_figure(folder / PICTURE, rate_distortion(rows, title))


def table(rows: Sequence[Json]) -> str:
    """Return the points of the sweep's curve as a text table."""
    head = "     beta       rate   distortion         ELBO     log p(x)   active units"
    unit = "                nats         nats         nats         nats"
    lines = [
        f"{row['beta']:9g} {row['rate']:10.3f} {row['distortion']:12.3f} {row['elbo']:12.3f} {row['log_px']:12.3f} "
        f"{row['active_units']!s:>14}"
        for row in rows
    ]
    return "\n".join([head, unit, *lines])
