"""The evaluation of a finished run."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import evidence, parallel
from pyro_vae.data import Data, Inputs
from pyro_vae.errors import check_count
from pyro_vae.evidence import Bracket, Estimate
from pyro_vae.models.protocol import evaluation_inputs, evidence_name, has_bound, has_density
from pyro_vae.runs.directory import RunDirectory, resuming
from pyro_vae.runs.evaluation import summary
from pyro_vae.runs.evaluation.checks import CHECKS, check_names, diagnose, made
from pyro_vae.runs.evaluation.estimators import ESTIMATORS, Estimation, estimate, estimate_batch
from pyro_vae.runs.progress import Console
from pyro_vae.runs.run import Run
from pyro_vae.system.checksum import checksum
from pyro_vae.system.files import write_atomically
from pyro_vae.system.randomness import own_randomness

#: Seed of the noise of dequantized pixels: with the run's own, the noise would be that of its draws.
DEQUANTIZED = 1_812_433_253


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how.

    Attributes:
        how: The estimator; its ``num_samples`` is None where each run has its own.
        num_samples: K; None: the run's own.
        num_data: How many of the test data, the first; None: all.
        dequantize: ``"none"``, or ``"uniform"``: 8-bit pixels become (x + u) / 256.
        checks: Of ``diagnosis.CHECKS``; ``aggregate`` is made of every whole test set.
    """

    how: Estimation
    num_samples: int | None = None
    num_data: int | None = None
    dequantize: str = "none"
    checks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_data is not None:
            check_count("num_data", self.num_data, remark=" image")
        check_names(self.checks)
        if self.dequantize not in ("none", "uniform"):
            raise ValueError(f"dequantize: expected none or uniform, got {self.dequantize!r}.")

    @property
    def whole(self) -> bool:
        """Whether it gives the figures of the whole test set that a run is known by."""
        return self.how.estimator == "importance" and self.num_data is None and self.dequantize == "none"

    @property
    def name(self) -> str:
        """Under which its figures stand in a run."""
        parts = [self.how.estimator]
        parts += [] if self.dequantize == "none" else ["dequantized"]
        return "-".join(parts if self.num_data is None else [*parts, str(self.num_data)])


@dataclass(frozen=True)
class Subject:
    """A run, with the data that it is evaluated on.

    Attributes:
        run: The run.
        data: Its data.
        columns: What its model is evaluated on.
        density: Whether log p(x) is a log density.
        name: What the evidence is called, see :func:`evidence_name`.
        key: What tells these data from others; equal where two runs can be compared.
    """

    run: Run
    data: Data
    columns: Inputs
    density: bool
    name: str
    key: tuple[Any, ...]


def subject(run: Run, request: Request) -> Subject:
    """Load what a run is evaluated on.

    Raises:
        ValueError: If the run has no whole epoch or no test data, there are too few, they cannot be dequantized, its model
            has no log p(x), or a check or the estimator does not suit it.
    """
    if not has_bound(run.vae):
        raise ValueError(
            f"run {run.path}: expected a model with a log p(x) to evaluate, got {run.config.model.model}, which has none; its "
            "squared error is in summary.json."
        )
    if not run.history.rows:
        raise ValueError(
            f"run {run.path}: expected at least one whole epoch to evaluate, got one interrupted in its first; go on with "
            f"{resuming(run.path)}."
        )
    with parallel.local_main_first():
        data = run.data()
    if data.test is None:
        raise ValueError(f"run {run.path}: expected test data to evaluate on, got none.")
    split, x = data.test, data.test.x
    if request.num_data is not None:
        if request.num_data > len(x):
            raise ValueError(
                f"num_data: expected at most the {len(x):,} test images of {run.path}, got {request.num_data:,}."
            )
        split, x = split.take(torch.arange(request.num_data)), x[: request.num_data]
    density = has_density(run.vae, evaluation_inputs(run.vae, split))
    if request.dequantize == "uniform":
        if not density:
            raise ValueError(
                f"dequantize: expected a run whose likelihood is a density, got {run.config.model.likelihood} ({run.path}), "
                "which gives probabilities already; drop it."
            )
        x = _dequantized(x)
    seen = x if isinstance(x, Tensor) else x[torch.arange(0, len(x), max(1, len(x) // 100))]
    columns = evaluation_inputs(run.vae, split._replace(x=x))
    name = evidence_name(run.vae, columns)  # log p(x|y) is not log p(x)
    key = (len(x), tuple(x.shape[1:]), density, name, checksum([seen]))
    check_suited(run.vae, columns, request.how, request.checks, f"the {run.config.model.model} of {run.path}")
    return Subject(run, data, columns, density, name, key)


def _dequantized(x: Any) -> Tensor:
    """Pixels k / 255 as (k + u) / 256."""
    if not isinstance(x, Tensor):
        raise ValueError("dequantize: expected test images that fit in memory, got larger ones; pass --num-data.")
    levels = x.double() * 255
    if not bool((levels - levels.round()).abs().max() < 1e-3):
        raise ValueError(
            "dequantize: expected 8-bit pixels, multiples of 1/255, got others: resized ones, say, whose bits mean nothing."
        )
    with own_randomness(DEQUANTIZED):
        return evidence.dequantize(levels.round())


def evaluate(found: Subject, request: Request, device: torch.device, console: Console) -> Estimate | Bracket:
    """Estimate log p(x) for a run's data, and bring its files up to date.

    Of the whole test set, from the guide's draws, the figures under ``test`` in ``summary.json``, ``log-px.png`` and
    ``worst.png`` are made anew; everything else stands under ``evidence`` there. The estimate of each datum goes to
    ``evidence-NAME.nc``.

    Args:
        found: The run and its data.
        request: What is asked for.
        device: Where.
        console: Prints the table, and decides whether a bar is shown.

    Returns:
        The estimate.

    Raises:
        ValueError: If a number is out of its range.
    """
    run, started = found.run, time.perf_counter()
    config, vae = run.config, run.vae.to(device)
    how = dataclasses.replace(request.how, num_samples=request.num_samples or config.evaluate.num_samples)
    progress = not console.quiet
    directory = RunDirectory(run.path, parallel.world().is_main)
    if request.whole:
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, num_samples=how.num_samples))
        data = found.data.to(device)
        figures, result = summary.evaluate(config, vae, data, run.history, run.seconds, progress, how)
        assert result is not None  # there is a bound
        figures = {**figures, **{k: v for k, v in _kept(run).items() if k in ("evidence", "checks")}}
        text = summary.table(figures)
    else:
        result = estimate(vae, found.columns.to(device), how, config.train.seed, progress)
        part, text = _part(result, found, request, how)
        figures = _kept(run)
        part["seconds"] = time.perf_counter() - started
        figures["evidence"] = {**figures.get("evidence", {}), request.name: part}
    console.line(text)
    if parallel.world().is_main:
        directory.write_json("summary.json", figures)
        always = ("aggregate",) if request.whole else ()
        checks, optional = dict.fromkeys((*always, *request.checks)), set(always) - set(request.checks)
        for name, values, words in diagnose(
            tuple(checks), vae, found.columns.to(device), config.train.seed, run.path, tuple(optional)
        ):
            key = name if request.num_data is None else f"{name}-{request.num_data}"
            figures["checks"] = {**figures.get("checks", {}), key: values}
            directory.write_json("summary.json", figures)
            console.line(words)
        files = _save(result, run.path, request.name)
        if request.whole and isinstance(result, Estimate):
            from pyro_vae.report.pictures import draw_estimate  # brings matplotlib

            assert found.data.test is not None
            files += [p.name for p in draw_estimate(found.data.test, "test", run.path, result, found.name)]
        console.line(f"{run.path}: summary.json, {', '.join(files)}")
    return result


def _kept(run: Run) -> dict[str, Any]:
    """The figures that a run has so far; none where they cannot be read."""
    try:
        return run.summary
    except ValueError:
        return {}


def _part(result: Any, found: Subject, request: Request, how: Estimation) -> tuple[dict[str, Any], str]:
    """The figures of an estimate and their table."""
    if isinstance(result, Bracket):
        means = result.summary()
        return dataclasses.asdict(means), summary.bracket_table(means, how.spent)
    levels = 256 if request.dequantize == "uniform" else None
    dims = None if found.density and levels is None else found.columns.parts[0][:1].numel()
    figures = summary.figures_of(result.summary(), dims, levels)
    for name in ("acceptance", "num_steps"):
        if (value := getattr(result, name, None)) is not None:
            figures[name] = float(value.mean()) if isinstance(value, Tensor) else value
    title = f"{'Test set' if request.num_data is None else 'First test images'}, {request.name}"
    return figures, summary.figures_table(figures, title, found.density, how.spent, found.name)


def _save(result: Any, folder: Path, name: str) -> list[str]:
    """Write the values of each datum as NetCDF."""
    parts = {name: result}
    if isinstance(result, Bracket):
        parts = {f"{name}-lower": result.lower, f"{name}-upper": result.upper.inverse}
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


#: How many data a check is tried on, spread over all of them, so that they differ in their labels.
TRIED = 20


#: What suits whatever has a log p(x): draws from the guide.
ALWAYS = ("importance", "smoothed")


def check_suited(vae: Any, columns: Inputs, how: Estimation, checks: Sequence[str], where: str) -> None:
    """Refuse what cannot be made of a model, before anything that takes time.

    Args:
        vae: The model.
        columns: What it is evaluated on.
        how: The estimator.
        checks: Of ``diagnosis.CHECKS``.
        where: What the sentence calls the model.

    Raises:
        ValueError: If the estimator or a check does not suit the model; it says which do.
    """
    if how.estimator not in ALWAYS:
        _check("estimator", [how.estimator], partial(estimator_refused, vae, columns, how), ESTIMATORS, where)
    _check("checks", checks, partial(check_refused, vae, columns), CHECKS, where)


def estimator_refused(vae: Any, columns: Inputs, how: Estimation, name: str) -> str | None:
    """Why an estimator cannot be made of a model; None where it can."""
    least: dict[str, Any] = {"num_samples": 2, "num_chains": 2, "num_steps": 1, "refine_steps": 1}
    short = dataclasses.replace(how, estimator=name, target_se=None, compile=False, **least)
    return _refusal(vae, columns, lambda few: estimate_batch(vae, few[:], short))


def check_refused(vae: Any, columns: Inputs, name: str) -> str | None:
    """Why a check cannot be made of a model; None where it can."""
    return _refusal(vae, columns, lambda few: made(name, vae, few, 0, **CHECKS[name].least))


def _refusal(vae: Any, columns: Inputs, attempt: Callable[[Inputs], Any]) -> str | None:
    """Why something cannot be made of a few data, without the advice for those who call it from Python; None where it can."""
    vae.eval()
    rows = torch.linspace(0, len(columns) - 1, min(TRIED, len(columns))).round().long()
    try:
        with own_randomness(0), pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is made
            attempt(Inputs(*columns[rows]))
    except (ValueError, TypeError, NotImplementedError) as error:
        said = str(error).partition("; ")[0].rstrip(".")
        head, colon, tail = said.partition(": ")
        return tail if colon and head.isidentifier() else said
    return None


def _check(
    argument: str, asked: Sequence[str], refused: Callable[[str], str | None], known: Iterable[str], where: str
) -> None:
    got = {name: why for name in asked if (why := refused(name)) is not None}
    if not got:
        return
    suited = [name for name in known if name not in got and (name in asked or refused(name) is None)]
    expected = f"{_either(suited)}, which suit {where}" if suited else f"none with {where}, which none suits"
    mend = "take one of those" if argument == "estimator" else "leave it out" if len(got) == 1 else "leave them out"
    said = " and ".join(f"{name} ({why})" for name, why in got.items())
    raise ValueError(f"{argument}: expected {expected}, got {said}; {mend}.")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
