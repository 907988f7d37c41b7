"""Throughput of training: this package against plain PyTorch, stock Pyro and pythae, in one run.

    python -m benchmarks.throughput [--data-dir DATA] [--rounds 7] [--out benchmarks/out/throughput]
    make bench ARGS="--data-dir DATA"

Writes ``throughput.md`` (also to the console), ``throughput.json`` and ``scaling.png``. Rounds are interleaved: every
rival trains the same number of images once a round, in an order drawn anew, and ratios are taken within a round. A rival
whose loss does not fall has its figure withheld, and the exit code is 1. Takes about an hour on a quiet machine with 2
cores; ``--quick`` takes minutes, and its figures mean nothing. Without MNIST the images are synthetic. pythae comes with
``pip install pyro_vae[bench]``. Threads are those of torch: set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks.throughput import fresh, images, machine, scaling, table, targets
from benchmarks.throughput.networks import NETWORKS
from benchmarks.throughput.rivals import RIVALS, Case
from benchmarks.throughput.rounds import Row, best_of_ours, measure, rate

PARTS = ("rates", "imports", "starts", "scaling")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies; none: synthetic images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/throughput"))
    parser.add_argument(
        "--only", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME", help=", ".join(RIVALS)
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=20_480, help="images that each rival trains on in a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two rounds of few images")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.images = min(chosen.rounds, 2), 2048
    if chosen.rounds < 1 or min(chosen.batch_sizes) < 1 or chosen.images < max(chosen.batch_sizes):
        parser.error("expected at least 1 round, batches of at least 1 image, and images for at least one batch")
    if chosen.data_dir is not None and not (chosen.data_dir / "MNIST" / "raw").is_dir():
        parser.error(f"--data-dir: expected a folder with MNIST/raw, got {chosen.data_dir}")
    try:
        torch.zeros(1, device=chosen.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device: expected one that works here, got {chosen.device}: {str(error).splitlines()[0]}")
    return chosen


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Results:
    """Everything measured so far; written after each part, so that a run cut short is not lost."""

    def __init__(self, chosen: argparse.Namespace, data: str) -> None:
        self.chosen = chosen
        self.machine, self.data = machine.describe(torch.device(chosen.device)), data
        self.cells: dict[tuple[str, int], dict[str, Row]] = {}
        self.cases: dict[tuple[str, int], Case] = {}
        self.imports: dict[str, list[float]] | None = None
        self.starts: dict[str, Any] | None = None
        self.points: list[dict[str, Any]] = []

    def markdown(self) -> str:
        parts = [table.heading(self.machine, self.data, self.chosen.rounds, self.chosen.quick)]
        parts += [table.rates(self.cases[key], rows) for key, rows in self.cells.items()]
        parts += [table.targets(targets.measured(self.cells, self.imports), self.chosen.quick)]
        parts += [table.imports(self.imports)] if self.imports else []
        parts += [table.starts(self.starts)] if self.starts else []
        parts += [table.exponents(scaling.exponents(self.points))] if self.points else []
        return "\n\n".join(parts) + "\n"

    def json(self) -> dict[str, Any]:
        cells = []
        for (network, batch_size), rows in self.cells.items():
            case = self.cases[network, batch_size]
            found = {
                name: {**dataclasses.asdict(row), "images_per_second": rate(case, row)._asdict() if row.ran else None}
                for name, row in rows.items()
            }
            cells.append({"network": network, "batch_size": batch_size, "steps": case.steps, "rivals": found})
        goals = [
            {
                "over": over,
                "batch_size": b,
                "ours": ours,
                "least": least,
                "aim": aim,
                "measured": value and value._asdict(),
            }
            for over, b, ours, least, aim, value, _ in targets.measured(self.cells, self.imports)
        ]
        return {
            "machine": self.machine,
            "data": self.data,
            "rounds": self.chosen.rounds,
            "quick": self.chosen.quick,
            "interval": "least and greatest of the rounds",
            "cells": cells,
            "targets": goals,
            "imports": self.imports,
            "starts": self.starts,
            "scaling": {"milliseconds": self.points, "exponents": scaling.exponents(self.points)},
        }

    def write(self) -> None:
        out: Path = self.chosen.out
        out.mkdir(parents=True, exist_ok=True)
        (out / "throughput.md").write_text(self.markdown())
        (out / "throughput.json").write_text(json.dumps(self.json(), indent=1))
        if self.points:
            scaling.plot(self.points, out / "scaling.png")


def run(chosen: argparse.Namespace) -> Results:
    x, data = images.load(chosen.data_dir)
    x = x.to(chosen.device)
    results = Results(chosen, data)
    if "rates" in chosen.parts:
        for network in chosen.networks:
            for batch_size in chosen.batch_sizes:
                case = Case(network, x, batch_size, chosen.images // batch_size)
                pyro.clear_param_store()
                results.cases[network, batch_size] = case
                results.cells[network, batch_size] = measure(case, chosen.only, chosen.rounds, log)
                results.write()
    if "imports" in chosen.parts:
        results.imports = fresh.imports(chosen.rounds)
        results.write()
    if "starts" in chosen.parts:
        results.starts = fresh.starts(chosen.only, 128, 1 if chosen.quick else min(chosen.rounds, 3), log)
        results.write()
    if "scaling" in chosen.parts:
        axes = scaling.QUICK if chosen.quick else scaling.AXES
        results.points = scaling.scaling(x, scaled(results, chosen.only), chosen.rounds, axes, log)
        results.write()
    return results


def scaled(results: Results, names: Sequence[str]) -> list[str]:
    """The plain loop and the one of ours that is shown."""
    rows = next(iter(results.cells.values()), {})
    ours = best_of_ours(rows) or "eager"
    return [name for name in ("plain", ours) if name in names]


def main() -> None:
    chosen = options()
    results = run(chosen)
    print(results.markdown())
    failures = [(*cell, row) for cell, rows in results.cells.items() for row in rows.values() if row.failed]
    for network, batch_size, row in failures:
        log(f"error: {network}, batch {batch_size}, {row.name}: {row.note}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
