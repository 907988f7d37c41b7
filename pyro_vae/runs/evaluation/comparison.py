"""Finished runs on the same test data compared: a table, figures, a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae import evidence
from pyro_vae.runs.directory import RunDirectory
from pyro_vae.runs.evaluation.evaluation import Request, Subject
from pyro_vae.runs.progress import Console
from pyro_vae.system.files import fresh


def check_comparable(subjects: Sequence[Subject]) -> None:
    """Refuse to compare runs on other data, other binarizations, or densities with probabilities.

    Raises:
        ValueError: If two differ.
    """
    first = subjects[0]
    if first.key[0] < 2:
        raise ValueError(
            "runs: expected at least two test images to compare them on, got one; pass a larger --num-data."
        )
    for other in subjects[1:]:
        if other.name != first.name:
            raise ValueError(
                f"runs: expected all of them given labels or none, got {first.name} of {first.run.path} and {other.name} of "
                f"{other.run.path}; evaluate each by a command of its own."
            )
        if other.key != first.key:
            raise ValueError(
                f"runs: expected the same test images, binarized alike, got others in {first.run.path} than in "
                f"{other.run.path}: their {first.name} cannot be compared; evaluate each by a command of its own."
            )


def compare(subjects: Sequence[Subject], results: Sequence[Any], request: Request, console: Console) -> Path:
    """Paired differences of log p(x) of several runs: a table, ``comparison.json`` and ``comparison.png``.

    Returns:
        The folder in which they are, a new one beside the first run.
    """
    from pyro_vae.report.figures.comparison import comparison
    from pyro_vae.report.pictures import write_figure

    names = names_of([s.run.path for s in subjects])
    found = evidence.compare(
        dict(zip(names, results, strict=True)),
        data_keys={n: s.key for n, s in zip(names, subjects, strict=True)},
        evidence=subjects[0].name,
    )
    console.line(found.table())
    with fresh(subjects[0].run.path.parent, f"comparison-{request.name}") as folder:
        directory = RunDirectory(folder)
        rows = [dataclasses.asdict(row) for row in found.rows]
        directory.write_json(
            "comparison.json",
            {
                "models": rows,
                "reference": found.reference,
                "level": found.level,
                "num_data": found.num_data,
                "stacked_log_px": found.stacked,
                "units": "nats per datum",
                "runs": {n: str(s.run.path) for n, s in zip(names, subjects, strict=True)},
            },
        )
        write_figure(folder / "comparison.png", comparison(found))
        console.line(f"{folder}: comparison.json, comparison.png")
        return folder


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths of runs that tell them apart.

    Raises:
        ValueError: If one is there twice.
    """
    for depth in range(1, max(len(p.resolve().parts) for p in paths) + 1):
        names = ["/".join(p.resolve().parts[-depth:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError("runs: expected each run once, got one of them twice; drop one.")
