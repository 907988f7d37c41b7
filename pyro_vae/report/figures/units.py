"""Latent units: the KL of each, and the effect on images."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.data import Split
from pyro_vae.models.protocol import Autoencodes
from pyro_vae.report.figures.encoded import Encoded
from pyro_vae.report.figures.tiles import GAP, decoded, like_parameters, pick, tiles

MAX_TRAVERSED = 10
MAX_NAMED = 64  # with more units, their numbers have no room
STEPS = 13  # from -3 to 3 standard deviations in steps of 0.5

ACTIVE, INACTIVE = "#0072B2", "#D55E00"


def by_kl(unit_kl: Tensor) -> list[int]:
    """Sort the indices of the latent units by KL, the largest first."""
    return unit_kl.argsort(descending=True, stable=True).tolist()


def units(encoded: Encoded, unit_kl: Tensor, source: str) -> Figure:
    """Draw the KL of each latent unit; active units are marked.

    The KLs of the units sum to the rate if the guide has no further latent site, such as a label.

    Args:
        encoded: The encoded data.
        unit_kl: KL of each unit, shape ``(Z,)``, nats.
        source: Name of the data, such as ``test``.
    """
    order = by_kl(unit_kl)
    active = evidence.active_units(encoded.means)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots()
    _stems(axes, unit_kl[order], active[order])
    if len(order) <= MAX_NAMED:
        axes.set_xticks(
            range(1, len(order) + 1), [str(unit + 1) for unit in order], fontsize=10 if len(order) <= 40 else 7
        )
        axes.set_xlabel("latent unit, the largest KL first")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("rank of the latent unit, the largest KL first")
    axes.set(xlim=(0.3, len(order) + 0.7), ylabel="mean KL, nats per datum")
    axes.set_ylim(0, 1.05 * max(float(unit_kl.max()), 1e-3))
    formula = "" if encoded.q is None else f"$KL({encoded.q.replace('z|', 'z_j|')} \\,\\|\\, p(z_j))$; "
    axes.set_title(
        f"KL of each latent unit from its prior, mean over {encoded.amount()} {source} data\n"
        f"{formula}their sum{', the rate,' if encoded.num_sites == 1 else ''} is {float(unit_kl.sum()):.2f} nats"
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _stems(axes: Axes, heights: Tensor, active: Tensor) -> None:
    """Draw a stem for each unit; active units get a full dot."""
    size = 34 if len(heights) <= MAX_NAMED else 9
    kinds = (
        (active, ACTIVE, ACTIVE, "active: the posterior mean's variance is above 0.01"),
        (~active, INACTIVE, "white", "inactive"),
    )
    for chosen, edge, face, text in kinds:
        places, tops = (1 + chosen.nonzero()[:, 0]).tolist(), heights[chosen].tolist()
        label = f"{len(places):,} {text}"
        axes.vlines(places, 0, tops, color=edge, linewidth=1.6)
        axes.scatter(places, tops, s=size, facecolor=face, edgecolor=edge, zorder=3, label=label, clip_on=False)


def traversals(vae: Autoencodes, split: Split, unit_kl: Tensor, source: str) -> Figure:
    """Decode an image's code while one unit runs over its prior.

    Args:
        vae: A model of images with independent latent units.
        split: The images.
        unit_kl: KL of each latent unit, shape ``(Z,)``, nats; the units with the largest KL are shown.
        source: Name of the data, such as ``test``.
    """
    order = by_kl(unit_kl)[:MAX_TRAVERSED]
    mean = vae.encode(like_parameters(vae, pick(split, 1))).mean[0]
    prior = vae.prior()
    steps = torch.linspace(-3, 3, STEPS).to(mean)
    z = mean.repeat(len(order), STEPS, 1)
    for row, unit in enumerate(order):
        z[row, :, unit] = prior.mean[unit] + steps * prior.stddev[unit]
    figure, axes = tiles(decoded(vae, z.flatten(0, 1)), range(STEPS), range(len(order)))
    for row, unit in enumerate(order):
        column = int((z[row, :, unit] - mean[unit]).abs().argmin())
        side = 1 - 2 * GAP
        axes.add_patch(Rectangle((column + GAP, row + GAP), side, side, fill=False, edgecolor=INACTIVE, linewidth=2))
    axes.set_yticks(
        [row + 0.5 for row in range(len(order))], [f"$z_{{{unit + 1}}}$: {unit_kl[unit]:.2f} nats" for unit in order]
    )
    axes.set_xticks([k + 0.5 for k in range(STEPS)], [f"{step:g}".replace("-", "−") for step in steps.tolist()])
    axes.set_xlabel("value of the unit, in standard deviations from the mean of its prior")
    which = f"{len(order)} of {len(unit_kl)} units" if len(order) < len(unit_kl) else "all units"
    axes.set_title(
        f"Latent traversals of one {source} image: {which}, the largest KL first\n"
        "mean of p(x|z) at the mean of q(z|x) with one unit changed; framed: nearest to the unchanged value"
    )
    return figure
