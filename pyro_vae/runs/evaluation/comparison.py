"""Comparison of finished runs on the same test data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pyro_vae import evidence
from pyro_vae.evidence import Bracket, Estimate
from pyro_vae.runs.directory import RunDirectory
from pyro_vae.runs.evaluation.subject import Request, Subject
from pyro_vae.runs.progress import Console
from pyro_vae.system.files import dated_folder


def check_comparable(subjects: Sequence[Subject]) -> None:
    """Refuse runs whose log p(x) cannot be compared.

    All runs must have the same test data and the same binarization. log p(x) must be a density for all runs or a probability
    for all runs, and of the same variables.

    Raises:
        ValueError: If two runs differ in one of these points, or there is only one test datum.
    """
    first = subjects[0]
    if len(first.inputs) < 2:
        raise ValueError("runs: expected at least two test images for a comparison, got one; pass a larger --num-data.")
    for other in subjects[1:]:
        if other.name != first.name:
            raise ValueError(
                f"runs: {first.name} of {first.run.path} cannot be compared with {other.name} of {other.run.path}; evaluate "
                "each run by its own command."
            )
        if other.key != first.key:
            raise ValueError(
                f"runs: expected the same test images, binarized alike, got different images in {first.run.path} and "
                f"{other.run.path}; evaluate each run by its own command."
            )


def compare(
    subjects: Sequence[Subject], results: Sequence[Estimate | Bracket], request: Request, console: Console
) -> Path:
    """Compare log p(x) of several runs by paired differences.

    Writes ``comparison.json`` and ``comparison.png``.

    Args:
        subjects: The runs.
        results: The estimate of each run.
        request: The request for which the estimates were made.
        console: Prints the table, unless quiet.

    Returns:
        The folder of both files, a new folder next to that of the first run.
    """
    from pyro_vae.report.figures.comparison import comparison
    from pyro_vae.report.pictures import write_figure

    names = shortest_names([s.run.path for s in subjects])
    result = evidence.compare(
        {name: r for name, r in zip(names, results, strict=True) if isinstance(r, Estimate)},
        data_keys={n: s.key for n, s in zip(names, subjects, strict=True)},
        evidence=subjects[0].name,
    )
    console.line(result.table())
    with dated_folder(subjects[0].run.path.parent, f"comparison-{request.name}") as folder:
        figures = {
            "models": [dataclasses.asdict(row) for row in result.rows],
            "reference": result.reference,
            "level": result.level,
            "num_data": result.num_data,
            "stacked_log_px": result.stacked,
            "units": "nats per datum",
            "runs": {n: str(s.run.path) for n, s in zip(names, subjects, strict=True)},
        }
        RunDirectory(folder).write_json("comparison.json", figures)
        write_figure(folder / "comparison.png", comparison(result))
        console.line(f"{folder}: comparison.json, comparison.png")
        return folder


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest endings of the paths that distinguish the runs.

    Raises:
        ValueError: If a path occurs twice.
    """
    for depth in range(1, max(len(p.resolve().parts) for p in paths) + 1):
        names = ["/".join(p.resolve().parts[-depth:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError("runs: expected each run once, got a run twice; name each run once.")
