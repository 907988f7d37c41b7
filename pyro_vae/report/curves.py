"""The curves of a run: ELBO, rate, distortion and beta by epoch."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.inference import History

# Okabe and Ito: told apart by every kind of colour vision.
TRAIN, VALIDATION, OBJECTIVE = "#0072B2", "#D55E00", "#009E73"


def curves(history: History) -> Figure:
    """Four panels over epochs; bounds are the true ones, the objective stands beside them where it differs.

    Of a model without a bound and without a rate, such as the autoencoder, one: its distortion, the squared error there.
    """
    if _value(history) != "ELBO" and not any(history["train_rate"]):
        return _distortion_alone(history)
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    elbo, rate, distortion, beta = figure.subplots(2, 2, sharex=True).flat
    _draw_bounds(elbo, history)
    _draw_column(rate, history, "rate")
    _draw_column(distortion, history, "distortion")
    for axes, title in ((elbo, _value(history)), (rate, "Rate"), (distortion, "Distortion")):
        axes.set_title(title, loc="left")
        axes.set_ylabel("nats per datum")
        _crop(axes)
    _line(beta, history, "beta", "black", "")
    beta.set_ylim(0, 1.08 * max(1.0, *history["beta"]))
    beta.set_title("Weight β of the rate in the objective", loc="left")
    beta.set_ylabel("β")
    for axes in (elbo, rate, distortion, beta):
        _finish_panel(axes, history)
    for axes in (distortion, beta):
        axes.set_xlabel("epoch")
    handles, labels = elbo.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9, columnspacing=1.2
    )
    return figure


def _distortion_alone(history: History) -> Figure:
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    _draw_column(axes, history, "distortion")
    if _has_validation(history):
        _band(axes, history, "validation_distortion", "validation_objective_std_error")
    _crop(axes)
    _finish_panel(axes, history)
    axes.set(xlabel="epoch", ylabel="mean over data")
    axes.set_title("Distortion", loc="left")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _band(axes: Axes, history: History, value: str, error: str) -> None:
    middle, width = np.array(history[value]), np.array(history[error])
    axes.fill_between(history["epoch"], middle - width, middle + width, color=VALIDATION, alpha=0.2, linewidth=0)


def _line(axes: Axes, history: History, column: str, color: str, label: str, style: str = "-") -> None:
    marker = "o" if len(history) <= 30 else ""  # one epoch is a point, which a line does not show
    axes.plot(history["epoch"], history[column], style, color=color, label=label, marker=marker, markersize=3.5)


def _has_validation(history: History) -> bool:
    return "validation_distortion" in history.rows[-1]


def _value(history: History) -> str:
    """What is maximized: the ELBO, or of a model without a bound its objective."""
    return "ELBO" if "train_elbo" in history.rows[-1] else "Objective"


def _draw_column(axes: Axes, history: History, quantity: str) -> None:
    _line(axes, history, f"train_{quantity}", TRAIN, "training (mean over the epoch)")
    if _has_validation(history):
        _line(axes, history, f"validation_{quantity}", VALIDATION, "validation (band: ±1 standard error)")


def _draw_bounds(axes: Axes, history: History) -> None:
    name = _value(history).lower()
    train = "train_elbo" if name == "elbo" else "objective"
    _line(axes, history, train, TRAIN, "training (mean over the epoch)")
    if _has_validation(history):
        _line(axes, history, f"validation_{name}", VALIDATION, "validation (band: ±1 standard error)")
        _band(axes, history, f"validation_{name}", f"validation_{name}_std_error")
    pairs = zip(history["objective"], history[train], strict=True)
    if not all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in pairs):
        _line(axes, history, "objective", OBJECTIVE, "training objective (rate times β)", "--")


def _crop(axes: Axes) -> None:
    """Let the first tenth of ten or more epochs not set the scale of a panel, and say there what that cuts off."""
    values = np.stack([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    late = values[:, math.ceil(values.shape[1] / 10) :] if values.shape[1] >= 10 else values
    span = np.ptp(late)
    crop_below, crop_above = late.min() - values.min() > span > 0, values.max() - late.max() > span > 0
    if not (crop_below or crop_above):
        return
    bottom = late.min() - 0.25 * span if crop_below else values.min() - 0.1 * span
    top = late.max() + 0.25 * span if crop_above else values.max() + 0.1 * span
    axes.set_ylim(bottom, top)
    last = 1 + np.flatnonzero(((values < bottom) | (values > top)).any(0))[-1]
    epochs = "epoch 1" if last == 1 else f"epochs 1 to {last}"
    ends = (("lowest", values.min(), crop_below), ("highest", values.max(), crop_above))
    note = ", ".join(f"{word} {value:.4g}" for word, value, cropped in ends if cropped)
    axes.set_title(f"cut off in {epochs}: {note}".replace("-", "−"), loc="right", fontsize=8)


def _finish_panel(axes: Axes, history: History) -> None:
    if _has_validation(history):
        label = f"best on validation: epoch {history.best_epoch}"
        axes.axvline(history.best_epoch, color="0.4", linestyle=":", linewidth=1.2, label=label)
    margin = max(0.5, 0.02 * len(history))
    axes.set_xlim(history["epoch"][0] - margin, history["epoch"][-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
