"""Latent units against known factors: which unit says how much of what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pyro_vae.evidence.disentanglement import InformationGap

#: Cells darker than this have white numbers.
DARK = 0.55


def units_by_factors(found: dict[str, InformationGap], factors: Sequence[str]) -> Figure:
    """A panel for each code: how much of each factor (columns) each unit says (rows), as a share of its entropy.

    Args:
        found: The scores, by the title of their panel; all of the same factors.
        factors: Names of the factors.

    Raises:
        ValueError: If there are other factors than names.
    """
    if not found:
        raise ValueError("found: expected at least one code, got none.")
    for title, gap in found.items():
        if len(gap.entropy) != len(factors):
            raise ValueError(f"factors: expected {len(gap.entropy)} names for {title}, got {len(factors)}.")
    most = max(len(gap.information) for gap in found.values())
    figure = Figure(figsize=(0.62 * len(factors) * len(found) + 1.6, 0.36 * most + 1.9), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=False, squeeze=False)[0]
    for k, (axes, (title, gap)) in enumerate(zip(panels, found.items(), strict=True)):
        image = _panel(axes, gap, factors)
        axes.set_title(f"{title}\nMIG {gap.value:.2f} ± {gap.std_error:.2f}", fontsize=10)
        axes.set_ylabel("latent unit" if k == 0 else "")
    figure.colorbar(image, ax=list(panels), label="share of the factor's entropy", shrink=0.8)
    figure.suptitle("What each latent unit says of each factor: I(z; v) / H(v)", fontsize=11)
    return figure


def _panel(axes: Axes, gap: InformationGap, factors: Sequence[str]) -> AxesImage:
    """Units in the order of the factor that they say most of, those that say nothing last."""
    shares = gap.shares.clamp(min=0)
    best = shares.argmax(1)
    order = sorted(
        range(len(shares)), key=lambda j: (float(shares[j].max()) < 0.02, int(best[j]), -float(shares[j].max()))
    )
    shown = shares[order]
    image = axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in torch.cartesian_prod(torch.arange(len(shown)), torch.arange(len(factors))).tolist():
        value = float(shown[row, column])
        if value >= 0.005:
            colour = "white" if value > DARK else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(factors)), factors, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(order)), [f"$z_{{{j + 1}}}$" for j in order])
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.7")
    return image
