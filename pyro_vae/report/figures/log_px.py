"""Log p(x) of each datum: a histogram, and the extreme images."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from pyro_vae.data import Split
from pyro_vae.evidence import Estimate
from pyro_vae.report.figures.tiles import captioned

LEAST, WORST = 10, 20  # images shown

TRUSTED, DOUBTED = "#0072B2", "#E69F00"


def log_px(estimate: Estimate, split: Split, images: bool, source: str, name: str = "log p(x)") -> Figure:
    """Draw a histogram of log p(x), and the ten least likely images.

    Args:
        estimate: Estimate of log p(x) for the data of ``split``, in the same order.
        split: The data.
        images: True if the data are images; the least likely are then drawn.
        source: Name of the data, such as ``test``.
        name: Name of the estimated quantity.

    Raises:
        ValueError: If ``estimate`` has a different number of data.
    """
    if len(estimate.log_px) != len(split.x):
        raise ValueError(
            f"estimate: expected log p(x) of all {len(split.x):,} {source} data, got {len(estimate.log_px):,}; estimate "
            "log p(x) of the data shown."
        )
    height, width = split.x.shape[-2:] if images else (0, 1)
    below = 0.7 + 0.85 * min(height / width, 2.0) if images else 0.0
    figure = Figure(figsize=(9, 4.6 + below), layout="constrained")
    if images:
        parts = figure.subfigures(2, 1, height_ratios=(4.6, below), squeeze=False)[:, 0]
        _histogram(parts[0], estimate, source, name)
        _least_likely(parts[1], estimate, split, name)
    else:
        _histogram(figure, estimate, source, name)
    return figure


def worst(estimate: Estimate, split: Split, source: str, name: str = "log p(x)") -> Figure:
    """Draw the images whose estimates are least reliable (largest Pareto k).

    Args:
        estimate: Estimate of log p(x) for the data of ``split``, in the same order.
        split: The images.
        source: Name of the data, such as ``test``.
        name: Name of the estimated quantity.
    """
    count, columns = min(WORST, len(split.x)), LEAST
    order = estimate.pareto_k.argsort(descending=True, stable=True)[:count]
    rows = math.ceil(count / columns)
    height, width = split.x.shape[-2:]
    figure = Figure(figsize=(9, 1.1 + rows * (0.55 + 0.85 * min(height / width, 2.0))), layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    captioned(panels, split.x[order], [_reliability(estimate, index) for index in order.tolist()])
    bad, (what, limit) = int((~estimate.reliable).sum()), estimate.criterion
    figure.suptitle(
        f"The {count} {source} images with the largest Pareto k; below each, k and the share of the largest weight\n"
        f"{what} is above {limit} for {bad:,} of {len(split.x):,} images: their {name} is likely too low",
        fontsize=11,
    )
    return figure


def _reliability(estimate: Estimate, index: int) -> str:
    k, share = float(estimate.pareto_k[index]), f"{float(estimate.largest_share[index]):.0%}"
    return f"k {k:.2f}\n{share}" if math.isfinite(k) else share  # minus infinity: equal weights, which have no tail


def _least_likely(figure: SubFigure, estimate: Estimate, split: Split, name: str) -> None:
    order = estimate.log_px.argsort(stable=True)[:LEAST]
    figure.suptitle(f"The {len(order)} least likely images, with {name} in nats", fontsize=11)
    panels = figure.subplots(1, LEAST, squeeze=False)[0].tolist()
    captioned(panels, split.x[order], [f"{value:.1f}" for value in estimate.log_px[order].tolist()])


def _histogram(figure: Figure | SubFigure, estimate: Estimate, source: str, name: str) -> None:
    values, good = estimate.log_px.numpy(), estimate.reliable.numpy()
    what, limit = estimate.criterion
    kinds = (
        (f"{what} at most {limit}", values[good], TRUSTED),
        (f"{what} above {limit}: likely too low", values[~good], DOUBTED),
    )
    shown = [(f"{len(part):,} data, {words}", part, color) for words, part, color in kinds if len(part)]
    labels, parts, colors = (list(column) for column in zip(*shown, strict=True))
    bins = np.histogram_bin_edges(values, bins=int(np.clip(2 * math.sqrt(len(values)), 10, 60))).tolist()
    axes = figure.subplots()
    axes.hist(parts, bins=bins, stacked=True, label=labels, color=colors, edgecolor="white", linewidth=0.3)
    axes.axvline(float(values.mean()), color="black", linestyle="--", linewidth=1.2, label=_mean(estimate))
    axes.set(xlabel=f"{name}, nats (higher is more likely)", ylabel=f"number of {source} data")
    axes.set_title(
        f"{name} of {len(values):,} {source} data, each by importance sampling with {_draws(estimate)} draws"
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, columnspacing=1.2)


def _draws(estimate: Estimate) -> str:
    mean = float(estimate.draws.double().mean())
    return f"K = {estimate.num_samples:,}" if mean == estimate.num_samples else f"on average {mean:,.0f}"


def _mean(estimate: Estimate) -> str:
    summary = estimate.summary()
    error = "" if summary.std_error is None else f" ± {summary.std_error:.2f} (standard error)"
    return f"mean {summary.log_px:.2f}{error}".replace("-", "−")
