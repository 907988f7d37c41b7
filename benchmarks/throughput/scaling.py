"""Cost of a step against width, latent size, draws and batch, with exponents fitted by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.throughput.rivals import Case, words
from benchmarks.throughput.rounds import measure, spread

AXES: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 512, 1024, 2048),
    "latent size": (16, 64, 256, 1024, 4096),
    "draws K": (2, 4, 8, 16, 32),
    "batch": (32, 128, 512, 2048, 8192),
}
QUICK = {axis: sizes[:3] for axis, sizes in AXES.items()}


def case_of(axis: str, size: int, x: Tensor) -> Case:
    """The MLP at batch 128 with one thing changed, and so many steps that a round is of about equal work."""
    base = Case("mlp", x, 128, 1)
    case = {
        "width": replace(base, sizes={"width": size}),
        "latent size": replace(base, sizes={"latent_dim": size}),
        "draws K": replace(base, particles=size),
        "batch": replace(base, batch_size=size),
    }[axis]
    work = case.batch_size * case.particles * (size / 400 if axis == "width" else 1)
    return replace(case, steps=max(2, round(8192 / work)))


def scaling(
    x: Tensor, names: Sequence[str], rounds: int, axes: dict[str, tuple[int, ...]], log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Milliseconds a step of each rival at each size."""
    points = []
    for axis, sizes in axes.items():
        for size in sizes:
            case = case_of(axis, size, x)
            for name, row in measure(case, names, rounds, lambda _: None).items():
                if row.ran:
                    milliseconds = spread(1e3 * s / case.steps for s in row.seconds)._asdict()
                    points.append({"axis": axis, "rival": name, "size": size, **milliseconds})
            log(f"scaling: {axis} {size}")
    return points


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of value = c size^p by least squares of the logarithms; nan for a single point."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent over all sizes, and over the larger half, where what does not grow weighs less."""
    found = []
    for axis, name in dict.fromkeys((p["axis"], p["rival"]) for p in points):
        chosen = [p for p in points if (p["axis"], p["rival"]) == (axis, name)]
        sizes, values = [p["size"] for p in chosen], [p["median"] for p in chosen]
        half = len(sizes) // 2
        larger = slope(sizes[half:], values[half:])
        found.append({"axis": axis, "rival": name, "all": slope(sizes, values), "larger_half": larger})
    return found


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """A panel for each axis, log-log, with the fitted lines."""
    fitted = {(e["axis"], e["rival"]): e["all"] for e in exponents(points)}
    axes_names = list(dict.fromkeys(p["axis"] for p in points))
    figure = Figure(figsize=(4 * len(axes_names), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(axes_names), sharey=True))
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(p["rival"] for p in points))}
    for axis, panel in zip(axes_names, panels, strict=True):
        for name, color in colors.items():
            chosen = [p for p in points if (p["axis"], p["rival"]) == (axis, name)]
            if not chosen:
                continue
            sizes, median = (np.array([p[key] for p in chosen]) for key in ("size", "median"))
            errors = [[p["median"] - p["low"] for p in chosen], [p["high"] - p["median"] for p in chosen]]
            panel.errorbar(sizes, median, errors, fmt="o", color=color, markersize=4, linewidth=1)
            power = fitted[axis, name]
            line = np.exp(np.log(median).mean() + power * (np.log(sizes) - np.log(sizes).mean()))
            panel.plot(sizes, line, color=color, linewidth=1, label=f"{words(name).replace('**', '')}: {power:.2f}")
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xscale("log", base=2)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=7, title="fitted exponent", title_fontsize=7)
    panels[0].set_ylabel("milliseconds a step")
    figure.savefig(path, dpi=150)
