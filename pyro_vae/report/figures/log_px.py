"""The marginal likelihood of each datum: how it is spread, and which data are the least likely."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from pyro_vae.data import Split
from pyro_vae.evidence import Estimate
from pyro_vae.report.figures.tiles import FRAME, pixels, shrunk

LEAST, WORST = 10, 20

TRUSTED, DOUBTED = "#0072B2", "#E69F00"


def log_px(estimate: Estimate, split: Split, images: bool, source: str, name: str = "log p(x)") -> Figure:
    """Histogram of log p(x) over data; below it the ten least likely, where they are images.

    Args:
        estimate: Of the data of ``split``, in their order.
        split: The data.
        images: Whether a datum is an image.
        source: What the data are called.
        name: What the estimate is of.

    Raises:
        ValueError: If the estimate is of another number of data.
    """
    if len(estimate.log_px) != len(split.x):
        raise ValueError(
            f"estimate: expected log p(x) of all {len(split.x):,} {source} data, got {len(estimate.log_px):,}; estimate it for "
            "the data whose pictures are drawn."
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
    """The images whose estimates can be trusted least: those with the largest Pareto k.

    Args:
        estimate: Of the data of ``split``, in their order.
        split: The data, images.
        source: What the data are called.
        name: What the estimate is of.
    """
    count, columns = min(WORST, len(split.x)), LEAST
    order = estimate.pareto_k.argsort(descending=True, stable=True)[:count]
    rows = math.ceil(count / columns)
    shown = pixels(shrunk(split.x[order]))
    height, width = split.x.shape[-2:]
    figure = Figure(figsize=(9, 1.1 + rows * (0.55 + 0.85 * min(height / width, 2.0))), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, image, index in zip(panels, shown, order.tolist(), strict=False):
        share = float(estimate.largest_share[index])
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        k = float(estimate.pareto_k[index])  # minus infinity where all weights are equal: there is no tail
        words = f"k {k:.2f}\n{share:.0%}" if math.isfinite(k) else f"{share:.0%}"
        axes.set_xlabel(words.replace("-", "−"), fontsize=9)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=FRAME, linewidth=0.6, visible=bool(axes.images))
    bad, (what, limit) = int((~estimate.reliable).sum()), estimate.criterion
    figure.suptitle(
        f"The {count} {source} images with the largest Pareto k; below it, the share of the largest weight\n"
        f"{what} is above {limit} for {bad:,} of {len(split.x):,} images: their {name} is likely too low",
        fontsize=11,
    )
    return figure


def _least_likely(figure: SubFigure, estimate: Estimate, split: Split, name: str) -> None:
    order = estimate.log_px.argsort(stable=True)[:LEAST]
    shown, values = pixels(shrunk(split.x[order])), estimate.log_px[order].tolist()
    figure.suptitle(f"The {len(values)} least likely, with {name} in nats", fontsize=11)
    panels = figure.subplots(1, LEAST, squeeze=False)[0]
    for axes, image, value in zip(panels, shown, values, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_xlabel(f"{value:.1f}".replace("-", "−"), fontsize=9)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=FRAME, linewidth=0.6, visible=bool(axes.images))


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
    axes.set(xlabel=f"{name}, nats (higher is more likely)", ylabel=f"{source} data")
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
    found = estimate.summary()
    error = "" if found.std_error is None else f" ± {found.std_error:.2f} (standard error)"
    return f"mean {found.log_px:.2f}{error}".replace("-", "−")
