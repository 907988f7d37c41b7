"""Learning curves: ELBO, rate, distortion and beta for each epoch."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.inference import History

# The palette of Okabe and Ito, safe for colour-blind readers.
TRAIN, VALIDATION, OBJECTIVE = "#0072B2", "#D55E00", "#009E73"

TOLERANCE = 1e-4  # values that differ by less are equal up to rounding
LEGEND = 140  # most characters in one line of the legend


def curves(history: History, trained_on: str = "", loss: str = "distortion") -> Figure:
    """Draw ELBO, rate, distortion and beta for each epoch, in four panels.

    The ELBO is the true ELBO (beta = 1). The training objective is also drawn if it differs from the ELBO. The figure of a
    model without a bound and without a rate, such as the autoencoder, has one panel: the loss.

    Args:
        history: The history of the training, with at least one epoch.
        trained_on: Part of the data to which the training ELBO refers, see :func:`pyro_vae.models.protocol.trained_on`.
        loss: Name of the loss of a model without a bound.
    """
    train = f"training{trained_on and ', of '}{trained_on} (mean over the epoch)"
    if _bound_name(history) != "ELBO" and not any(history["train_rate"]):
        return _loss_alone(history, train, loss)
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    elbo, rate, distortion, beta = figure.subplots(2, 2, sharex=True).flat
    _draw_bounds(elbo, history, train)
    _draw_column(rate, history, "rate", train)
    _draw_column(distortion, history, "distortion", train)
    for axes, title in ((elbo, _bound_name(history)), (rate, "Rate"), (distortion, "Distortion")):
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
    columns = len(labels) if sum(map(len, labels)) < LEGEND else 2
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, columnspacing=1.2
    )
    return figure


def _loss_alone(history: History, train: str, loss: str) -> Figure:
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    _draw_column(axes, history, "distortion", train)
    if _has_validation(history):
        _band(axes, history, "validation_distortion", "validation_objective_std_error")
    _crop(axes)
    _finish_panel(axes, history)
    axes.set(xlabel="epoch", ylabel="mean over data")
    axes.set_title(f"{loss[0].upper()}{loss[1:]} of a datum", loc="left")
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


def _bound_name(history: History) -> str:
    """Return ``ELBO``, or ``Objective`` for a model without a bound."""
    return "ELBO" if "train_elbo" in history.rows[-1] else "Objective"


def _draw_column(axes: Axes, history: History, quantity: str, train: str) -> None:
    _line(axes, history, f"train_{quantity}", TRAIN, train)
    if _has_validation(history):
        _line(axes, history, f"validation_{quantity}", VALIDATION, "validation (band: ±1 standard error)")


def _draw_bounds(axes: Axes, history: History, label: str) -> None:
    name = _bound_name(history).lower()
    train = "train_elbo" if name == "elbo" else "objective"
    _line(axes, history, train, TRAIN, label)
    if _has_validation(history):
        _line(axes, history, f"validation_{name}", VALIDATION, "validation (band: ±1 standard error)")
        _band(axes, history, f"validation_{name}", f"validation_{name}_std_error")
    pairs = zip(history["objective"], history[train], strict=True)
    if not all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs):
        _line(axes, history, "objective", OBJECTIVE, _objective_label(history, train), "--")


def _objective_label(history: History, train: str) -> str:
    r"""Return the objective's legend entry: its difference from the ELBO.

    .. math:: \mathcal L + (1 - \beta) R

    is the objective without penalties at a constant beta, where the first term is the ELBO and R is the rate. If beta changes
    during an epoch, the mean over the epoch lies between two values of this formula: at the previous epoch's beta, and at the
    epoch's own beta.
    """
    columns = ("objective", train, "train_rate", "beta")
    objective, bound, rate, beta = (np.array(history[column], dtype=float) for column in columns)
    rising = len(beta) > 1 and beta[1] >= beta[0]
    first = 0.0 if rising else 2 * beta[0] - beta[min(1, len(beta) - 1)]  # the initial beta, which no row records
    before = np.concatenate([[first], beta[:-1]])
    falls = beta < before  # a cycle may have started again within the epoch
    ends = [np.where(falls, 0.0, before), np.where(falls, max(first, beta.max()), beta)]
    low, high = np.sort([bound + (1 - weight) * rate for weight in ends], axis=0)
    near = TOLERANCE * np.maximum(1.0, np.abs(objective))
    if bool(((low - near <= objective) & (objective <= high + near)).all()):
        return "training objective (rate times β)"
    named = any(column.startswith("beta_") for column in history.rows[-1])  # weights of single sites
    if bool((objective <= high + near).all()) and not named:
        return "training objective, with its penalties and auxiliary terms"
    return "training objective"


def _crop(axes: Axes) -> None:
    """Fit a panel's scale to the later epochs; note what is cut.

    If there are ten or more epochs, the first tenth of the epochs does not count for the scale.
    """
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
