"""A comparison of models: differences of log p(x) and stacking weights."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.evidence.comparison import Comparison, Difference

SURE, DOUBTED, REFERENCE = "#0072B2", "#E69F00", "0.4"


def comparison(result: Comparison) -> Figure:
    """Draw the models' differences to the reference and their stacking weights.

    The figure has a row for each model, the best on top. The left panel shows the difference in log p(x), the right panel the
    stacking weight.

    Args:
        result: The comparison of the models.
    """
    count = len(result.rows)
    figure = Figure(figsize=(9, 1.7 + 0.42 * count), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left.axvline(0, color=REFERENCE, linewidth=0.8, linestyle="--")
    for place, row in enumerate(result.rows):
        _difference(left, place, row, row.name == result.reference)
    _weights(right, result)
    left.set_yticks(range(count), [_name(row, row.name == result.reference) for row in result.rows])
    xlabel = f"{result.evidence} minus that of {result.reference}, nats per datum (higher is better)"
    if any(row.mc_error for row in result.rows):
        xlabel += "\nthick: ± 2 Monte Carlo standard errors, which more draws would reduce"
    left.set(ylim=(count - 0.5, -0.5), xlabel=xlabel)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(
        f"Paired differences over {result.num_data:,} data, with simultaneous {100 * result.level:g} % intervals",
        fontsize=11,
    )
    if not bool(result.reliable.all()):
        figure.supxlabel(
            f"orange: {result.evidence} of some data, here or under the reference, cannot be trusted and is likely too low",
            fontsize=9,
        )
    return figure


def _name(row: Difference, is_reference: bool) -> str:
    value = f"{row.log_px:.2f} nats".replace("-", "−")
    return f"{row.name}{', the reference' if is_reference else ''}\n{value}"


def _weights(axes: Axes, result: Comparison) -> None:
    axes.barh(range(len(result.rows)), [row.weight for row in result.rows], height=0.55, color="0.7")
    for place, row in enumerate(result.rows):
        axes.text(row.weight + 0.02, place, f"{row.weight:.2f}", va="center", fontsize=9)
    axes.set(xlim=(0, 1.2), xlabel="stacking weight", xticks=[0, 0.5, 1])
    axes.tick_params(left=False)


def _difference(axes: Axes, place: int, row: Difference, is_reference: bool) -> None:
    if is_reference:
        axes.plot(0, place, "D", color=REFERENCE, markersize=6)
        return
    color = DOUBTED if row.unreliable else SURE
    axes.plot([row.lower, row.upper], [place, place], color=color, linewidth=1.6, solid_capstyle="butt")
    if row.mc_error is not None:  # the part that more draws would reduce
        ends = [row.difference - 2 * row.mc_error, row.difference + 2 * row.mc_error]
        axes.plot(ends, [place, place], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot(row.difference, place, "o", color=color, markersize=6)
