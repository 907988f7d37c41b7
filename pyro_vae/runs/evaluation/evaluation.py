"""The evaluation of a finished run: estimate, figures, checks and files."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.evidence import Bracket, Estimate
from pyro_vae.models.protocol import PyroModel
from pyro_vae.runs.directory import Json, RunDirectory
from pyro_vae.runs.evaluation import summary, tables
from pyro_vae.runs.evaluation.checks import CHECKS, run_checks
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from pyro_vae.runs.evaluation.subject import Request, Subject
from pyro_vae.runs.progress import Console
from pyro_vae.runs.run import Run
from pyro_vae.system.files import write_atomically


class Evaluated(NamedTuple):
    """A new estimate, all figures of the run, and a table."""

    estimate: Estimate | Bracket
    figures: Json
    table: str


def evaluate(subject: Subject, request: Request, device: torch.device, console: Console) -> Estimate | Bracket:
    """Estimate log p(x) for a run's data, and update the run's files.

    An importance estimate of the whole test set replaces the figures under ``test`` in ``summary.json``, and the pictures
    ``log-px.png`` and ``worst.png``. The figures of every other estimate are written under ``evidence`` in ``summary.json``.
    The values for each datum are written to ``evidence-NAME.nc``.

    Args:
        subject: The run and its data.
        request: The estimator, its data and the checks.
        device: The device to evaluate on.
        console: Prints the table and shows a progress bar, unless quiet.

    Returns:
        The estimate.

    Raises:
        ValueError: If a number of the request is out of range.
    """
    run = subject.run
    how = dataclasses.replace(request.how, num_samples=request.num_samples or run.config.evaluate.num_samples)
    make = _whole if request.whole else _part
    result = make(subject, request, how, device, not console.quiet)
    console.line(result.table)
    if not parallel.world().is_main:
        return result.estimate
    RunDirectory(run.path).write_json("summary.json", result.figures)
    _make_checks(subject, request, result.figures, device, console)
    files = _write_values(result.estimate, run.path, request.name)
    if request.whole:
        files += _draw_estimate(subject, result.estimate)
    console.line(f"{run.path}: summary.json, {', '.join(files)}")
    return result.estimate


def _whole(subject: Subject, _request: Request, how: Estimation, device: torch.device, progress: bool) -> Evaluated:
    """Make a run's new summary; keep the old evidence and checks."""
    run = subject.run
    evaluation = dataclasses.replace(run.config.evaluate, num_samples=how.num_samples)
    config = dataclasses.replace(run.config, evaluate=evaluation)
    vae: PyroModel = run.vae.to(device)
    data = subject.data.to(device)
    figures, result = summary.evaluate(config, vae, data, run.history, run.seconds, progress, how)
    assert result is not None  # the model has a bound
    kept = {key: value for key, value in _figures_so_far(run).items() if key in ("evidence", "checks")}
    figures = {**figures, **kept}
    return Evaluated(result, figures, tables.summary_table(figures))


def _part(subject: Subject, request: Request, how: Estimation, device: torch.device, progress: bool) -> Evaluated:
    """Make an estimate; add it to the run's figures, under ``evidence``."""
    run, started = subject.run, time.perf_counter()
    vae: PyroModel = run.vae.to(device)
    result = estimate(vae, subject.inputs.to(device), how, run.config.train.seed, progress)
    if isinstance(result, Bracket):
        means = result.summary()
        part, table = dataclasses.asdict(means), tables.bracket_table(means, how.cost)
    else:
        part, table = _figures_of_part(result, subject, request, how)
    part["seconds"] = time.perf_counter() - started
    figures = _figures_so_far(run)
    figures["evidence"] = {**figures.get("evidence", {}), request.name: part}
    return Evaluated(result, figures, table)


def _figures_of_part(result: Estimate, subject: Subject, request: Request, how: Estimation) -> tuple[Json, str]:
    """Return the figures of an estimate, and a table of them."""
    levels = 256 if request.dequantize == "uniform" else None
    dims = None if subject.density and levels is None else subject.inputs.parts[0][:1].numel()
    figures = summary.estimate_figures(result.summary(), dims, levels)
    for name in ("acceptance", "num_steps"):
        if (value := getattr(result, name, None)) is not None:
            figures[name] = float(value.mean()) if isinstance(value, Tensor) else value
    title = f"{'Test set' if request.num_data is None else 'First test images'}, {request.name}"
    return figures, tables.estimate_table(figures, title, subject.density, how.cost, subject.name)


def _figures_so_far(run: Run) -> Json:
    """Return the figures in ``summary.json``; an empty dict if it is unreadable."""
    try:
        return run.summary
    except ValueError:
        return {}


def _make_checks(subject: Subject, request: Request, figures: Json, device: torch.device, console: Console) -> None:
    """Run the requested and the routine checks; write and print the findings."""
    run, directory = subject.run, RunDirectory(subject.run.path)
    routine = [name for name, check in CHECKS.items() if check.routine] if request.whole else []
    names, optional = (*dict.fromkeys((*routine, *request.checks)),), set(routine) - set(request.checks)
    inputs = subject.inputs.to(device)
    for name, found in run_checks(names, run.vae, inputs, run.config.train.seed, run.path, tuple(optional)):
        key = name if request.num_data is None else f"{name}-{request.num_data}"
        figures["checks"] = {**figures.get("checks", {}), key: found.figures}
        directory.write_json("summary.json", figures)
        console.line(found.text)


def _write_values(result: Estimate | Bracket, folder: Path, name: str) -> list[str]:
    """Write the values of each datum as NetCDF; return the file names."""
    parts: dict[str, Estimate] = {}
    if isinstance(result, Bracket):
        parts = {f"{name}-lower": result.lower, f"{name}-upper": result.upper.inverse}
    else:
        parts = {name: result}
    files = []
    for part, values in parts.items():
        file = folder / f"evidence-{part}.nc"
        handle, temporary = tempfile.mkstemp(suffix=".nc", dir=folder)
        os.close(handle)
        try:
            values.to_arviz().to_netcdf(temporary)
            write_atomically(file, Path(temporary).read_bytes())
        finally:
            os.unlink(temporary)
        files.append(file.name)
    return files


def _draw_estimate(subject: Subject, result: Estimate | Bracket) -> list[str]:
    """Draw an estimate of the whole test set; return the file names."""
    from pyro_vae.report.pictures import draw_estimate  # brings matplotlib

    if subject.data.test is None or not isinstance(result, Estimate):
        return []
    return [p.name for p in draw_estimate(subject.data.test, "test", subject.run.path, result, subject.name)]
