"""Disentanglement: the information of latent units about known factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from pyro_vae.evidence.criticism.disentanglement import InformationGap
from pyro_vae.models.vae import VAE
from pyro_vae.report.figures.tiles import decoded, like_parameters, tiles

#: Cells darker than this have white numbers.
DARK = 0.55

#: A smaller share of a factor's entropy counts as none.
NOTHING = 0.005

#: Number of units in a traversal, and of values for each unit, from -3 to 3 standard deviations of the prior.
ROWS, STEPS = 5, 7

#: Space for text beside and below a block, in tiles.
ASIDE, BELOW = 2.6, 1.0


def units_by_factors(scores: dict[str, InformationGap], factors: Sequence[str]) -> Figure:
    r"""Draw the information of each unit (row) about each factor (column).

    .. math:: I(z_j; v_k) / H(v_k)

    Args:
        scores: The score of each code, by the title of the code's panel; all codes have the same factors.
        factors: Names of the factors.

    Raises:
        ValueError: If ``scores`` is empty, or the number of names differs from the number of factors.
    """
    if not scores:
        raise ValueError("scores: expected at least one code, got none; pass the scores of a code.")
    for title, gap in scores.items():
        if len(gap.entropy) != len(factors):
            raise ValueError(
                f"factors: expected {len(gap.entropy)} names for {title}, got {len(factors)}; name each factor."
            )
    most = max(len(gap.information) for gap in scores.values())
    figure = Figure(figsize=(0.62 * len(factors) * len(scores) + 1.6, 0.36 * most + 1.9), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=False, squeeze=False)[0]
    for k, (axes, (title, gap)) in enumerate(zip(panels, scores.items(), strict=True)):
        image = _panel(axes, gap, factors)
        axes.set_title(f"{title}\nMIG {gap.value:.3f} ± {gap.std_error:.3f}", fontsize=10)
        axes.set_ylabel("latent unit" if k == 0 else "")
    figure.colorbar(
        image, ax=list(panels), label="share of the factor's entropy", shrink=0.8, format=PercentFormatter(1)
    )
    figure.suptitle("Information of latent units about factors: I(z; v) / H(v)", fontsize=11)
    return figure


def traversals_by_factor(
    models: dict[str, VAE], x: Tensor, scores: dict[str, InformationGap], factors: Sequence[str]
) -> Figure:
    """Decode an image's code while one unit runs over its prior.

    Each model has a block of rows, one row for each latent unit. The text beside a row names the factor about which the unit
    has most information. Units are sorted by this information; of the units without information, only the first is shown.

    Args:
        models: Models of images with a standard normal prior, by the title of the model's block.
        x: The image, shape ``data_shape``.
        scores: The score of each model's code, by the title of the model's block.
        factors: Names of the factors.
    """
    rows = min(ROWS, *(model.latent_dim for model in models.values()))
    order = {title: _shown(gap, rows) for title, gap in scores.items()}
    blocks = [_block(model, x, order[title], rows) for title, model in models.items()]
    if len(blocks) % 2 and len(blocks) > 1:
        blocks.append(torch.full_like(blocks[0], torch.nan))
    across, down = min(2, len(blocks)), (len(blocks) + 1) // 2
    images = torch.cat([torch.cat(blocks[k * across : (k + 1) * across], 1) for k in range(down)])
    left, top = STEPS + ASIDE, rows + BELOW
    figure, axes = tiles(
        images.flatten(0, 1),
        [k * left + column for k in range(across) for column in range(STEPS)],
        [k * top + row for k in range(down) for row in range(rows)],
    )
    for k, title in enumerate(models):
        start, above = k % across * left, k // across * top
        axes.text(start, above - 0.15, f"{title}: MIG {scores[title].value:.2f}", fontsize=12, va="bottom")
        for row, unit in enumerate(order[title]):
            factor = _best_factor(scores[title].shares[unit], factors)
            axes.text(
                start - 0.1, above + row + 0.5, f"$z_{{{unit + 1}}}$: {factor}", ha="right", va="center", fontsize=10
            )
    axes.set_title(
        "Mean of p(x|z) as one unit at a time runs from −3 to 3\n"
        "left of each row: the factor that the unit tells most about, and the share of its entropy",
        pad=26,
    )
    return figure


def _block(model: VAE, x: Tensor, units: Sequence[int], rows: int) -> Tensor:
    """Decode the traversals of one model's block, ``(rows, STEPS, *data_shape)``.

    Rows without a unit are NaN.
    """
    mean = model.encode(like_parameters(model, x[None])).mean[0]
    z = mean.repeat(rows, STEPS, 1)
    for row, unit in enumerate(units):
        z[row, :, unit] = torch.linspace(-3, 3, STEPS).to(mean)
    return decoded(model, z).index_fill(0, torch.arange(len(units), rows).to(z.device), torch.nan)


def _shown(gap: InformationGap, rows: int) -> list[int]:
    """Sort units by information about a factor; keep one uninformative unit."""
    order = gap.shares.amax(1).argsort(descending=True, stable=True)
    telling = int((gap.shares.amax(1) >= NOTHING).sum())
    return order[: min(rows, telling + 1)].tolist()


def _best_factor(shares: Tensor, factors: Sequence[str]) -> str:
    share, k = float(shares.max()), int(shares.argmax())
    return "nothing" if share < NOTHING else f"{factors[k]} {100 * share:.0f} %"


def _panel(axes: Axes, gap: InformationGap, factors: Sequence[str]) -> AxesImage:
    """Draw the units sorted by their best factor, those without information last."""
    shares = gap.shares.clamp(min=0)
    best = shares.argmax(1)
    order = sorted(
        range(len(shares)), key=lambda j: (float(shares[j].max()) < 0.02, int(best[j]), -float(shares[j].max()))
    )
    shown = shares[order]
    image = axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in torch.cartesian_prod(torch.arange(len(shown)), torch.arange(len(factors))).tolist():
        value = float(shown[row, column])
        if value >= NOTHING:
            colour = "white" if value > DARK else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(factors)), factors, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(order)), [f"$z_{{{j + 1}}}$" for j in order])
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.7")
    return image
