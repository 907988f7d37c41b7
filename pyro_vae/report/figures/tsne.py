"""t-SNE of the latent vectors, and t-SNE of the data themselves."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vae.data import Split
from pyro_vae.data.stored import rows_of
from pyro_vae.report.figures.encoded import Encoded
from pyro_vae.report.figures.scatter import classes_of, label_legend, nameless, scatter
from pyro_vae.report.figures.tiles import Array, shrunk

MIN_POINTS = 10  # with fewer, all data are neighbours
MAX_POINTS = 1000
MAX_VALUES = 2**24  # most numbers in the embedded data, 64 MiB in all
MAX_SIDE = 64  # largest side of an image in pixels


def tsne(encoded: Encoded, split: Split, source: str) -> Figure:
    """Draw t-SNE of the latent vectors (left) and of the data (right).

    In the first row, all points have the same colour. If there are labels, a second row shows the points coloured by label.

    Args:
        encoded: The encoded data; at most ``MAX_POINTS`` are drawn.
        split: The data themselves.
        source: Name of the data, such as ``test``.

    References:
        van der Maaten, Hinton, "Visualizing Data using t-SNE", 2008.
    """
    index, perplexity, seed = _choice(encoded, split)
    rows, means, labels = encoded.take(index)
    raw = _raw(split, rows)
    whole = raw.shape[1:] == split.x.shape[1:]
    kind = ("raw pixels" if whole else "averaged pixels") if raw.dim() == 4 else "raw data"
    embedded = {
        f"{'codes' if encoded.name == 'codes' else 'latent means'}, Z = {means.shape[1]:,}": _embed(
            means, perplexity, seed
        ),
        f"{kind}, D = {math.prod(raw.shape[1:]):,}": _embed(raw, perplexity, seed),
    }
    classes = classes_of(labels, len(rows))
    kinds = [nameless(len(rows))] + ([classes] if "" not in classes else [])
    figure = Figure(figsize=(10.5, 0.7 + 4.6 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 2, squeeze=False)
    for across, shown in zip(panels, kinds, strict=True):
        for axes, (title, points) in zip(across, embedded.items(), strict=True):
            scatter(axes, points, ["", ""], shown)
            axes.set(xticks=[], yticks=[], title=title)
    label_legend(figure, panels[-1, 0], classes, "outside right center", 1.6)
    figure.suptitle(
        f"t-SNE of {encoded.amount(len(rows))} {source} data, perplexity {perplexity:g}\n"
        "nearby points are similar; axes, large distances and the size of groups have no meaning",
        fontsize=11,
    )
    return figure


def _raw(split: Split, rows: torch.Tensor) -> torch.Tensor:
    """Load rows of the split; shrink large images to save memory."""
    if len(split.x.shape) != 4:
        return split.x[rows]
    parts = rows.split(rows_of(split.x.shape))
    return torch.cat([shrunk(split.x[part], MAX_SIDE).cpu() for part in parts])


def _choice(encoded: Encoded, split: Split) -> tuple[torch.Tensor, float, int]:
    """Choose the data to embed, the perplexity and the seed."""
    shape = split.x.shape[1:]
    if len(shape) == 3:
        shape = torch.Size((shape[0], *(min(n, MAX_SIDE) for n in shape[1:])))
    fit = MAX_VALUES // math.prod(shape)
    count = min(len(encoded.rows), MAX_POINTS, max(fit, MIN_POINTS))
    index = torch.randperm(len(encoded.rows))[:count]
    return index, min(30.0, (count - 1) // 3), int(torch.randint(2**31, ()))


def _embed(values: torch.Tensor, perplexity: float, seed: int) -> Array:
    """Embed values of shape ``(N, ...)`` by t-SNE; return shape ``(N, 2)``.

    The embedding starts from the first two principal components, or at random if the values have fewer than two.
    """
    from sklearn.manifold import TSNE

    flat = values.flatten(1).float().cpu().numpy()
    start = "pca" if flat.shape[1] > 1 and np.ptp(flat, axis=0).max() > 0 else "random"
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(flat).astype(np.float64)
