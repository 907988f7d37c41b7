"""Predictive checks: statistics of a set of images and of simulated sets."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.evidence.criticism.predictive import PredictiveChecks

OBSERVED, SIMULATED = "#D55E00", "0.75"


def predictive(checks: PredictiveChecks) -> Figure:
    """Draw a histogram of each statistic over the simulated sets.

    A line marks the value for the observed images. The last panel shows the mean power at each spatial frequency, for the
    observed images and for the simulated sets.

    Args:
        checks: Statistics of the observed images and of the simulated sets.
    """
    count = len(checks.names) + 1
    columns = min(4, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for k, axes in enumerate(panels[: count - 1]):
        _statistic(axes, checks, k)
    _spectrum(panels[count - 1], checks)
    for axes in panels[count:]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(
        f"Statistics of {checks.num_images:,} images and of {len(checks.replicated):,} simulated sets of as many",
        fontsize=11,
    )
    return figure


def _statistic(axes: Axes, checks: PredictiveChecks, k: int) -> None:
    name = checks.names[k]
    values, observed = checks.replicated[:, k].numpy(), float(checks.observed[k])
    axes.hist(values, bins=20, color=SIMULATED, label="simulated sets")
    axes.axvline(observed, color=OBSERVED, linewidth=1.8, label="observed")
    failed = name in checks.failures
    p = f"p = {checks.p_values[name]:.3f}"
    axes.set_title(f"{name}: {p}", fontsize=9.5, loc="left", color=OBSERVED if failed else "black")
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _spectrum(axes: Axes, checks: PredictiveChecks) -> None:
    sets = checks.replicated_spectrum.numpy()
    frequency = np.arange(1, sets.shape[1] + 1)
    low, high = np.quantile(sets, [0.025, 0.975], axis=0)
    if sets.shape[1] == 1:
        axes.errorbar(frequency, sets.mean(0), np.abs(np.stack([low, high]) - sets.mean(0)), color="0.5", fmt="s")
    axes.fill_between(frequency, low, high, color=SIMULATED, linewidth=0)
    axes.plot(frequency, sets.mean(0), color="0.45", linewidth=1)
    axes.plot(frequency, checks.observed_spectrum.numpy(), color=OBSERVED, linewidth=1.5, marker="o", markersize=2.5)
    values = np.concatenate([low, high, checks.observed_spectrum.numpy()])
    if values.max() > 5 * values.min() > 0:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("cycles per image", fontsize=9)
    axes.set_title("mean power (grey: 95 % of sets)", fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
