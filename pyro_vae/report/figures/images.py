"""Pictures made of images: reconstructions, samples, interpolations, the decoded plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vae.data import Inputs, Split
from pyro_vae.data.labels import are_vectors
from pyro_vae.distributions import StandardNormal
from pyro_vae.models.base import mean_image
from pyro_vae.models.protocol import call_with_inputs, evaluation_inputs, has_bound, num_required_arguments
from pyro_vae.report.figures.encoded import is_point
from pyro_vae.report.figures.tiles import (
    FRAME,
    MAX_SIDE,
    decoded,
    has_known_labels,
    inches,
    like_parameters,
    pick,
    pick_rows,
    pixels,
    shrunk,
    tiles,
)

MAX_COLUMNS = 12  # labels that have a column of their own


def reconstructions(vae: Any, split: Split, source: str) -> Figure:
    """Test images above their reconstructions, three rows of pairs."""
    width = min(10, len(split.x))
    height = min(3, len(split.x) // width)
    columns = Inputs(*like_parameters(vae, evaluation_inputs(vae, split)[pick_rows(split, width * height)]))
    made = torch.cat([shrunk(call_with_inputs(vae.reconstruct, part)) for part in columns.split(columns.chunk)])
    pairs = torch.stack([part.unflatten(0, (height, width)) for part in (shrunk(columns[:][0]), made)], dim=1)
    rows = [2.2 * pair + half for pair in range(height) for half in (0, 1)]
    figure, axes = tiles(pairs.flatten(0, 2), range(width), rows)
    axes.set_yticks([row + 0.5 for row in rows], ["original", "reconstruction"] * height)
    axes.set_title(f"Reconstructions of {source} images\n{_reconstructed(vae)}")
    return figure


def _reconstructed(vae: Any) -> str:
    """How ``reconstruct`` of a model of the package makes an image."""
    if not has_bound(vae):
        return "decoded from their codes"
    if num_required_arguments(getattr(vae, "decode", None)) == 2:
        given = num_required_arguments(vae.reconstruct) == 2
        return "mean of p(x|z, y) at one draw z ~ q(z|x, y)" if given else "mean image at one draw from the guide"
    return "mean of p(x|z) at one draw z ~ q(z|x)"


def samples(vae: Any, split: Split, source: str) -> Figure:
    """Means of p(x|z) at 64 draws from the prior; of a model of labels, each class in a column; else what it draws itself.

    Of a model of vectors there are no classes: what it makes of those of some images.
    """
    if num_required_arguments(getattr(vae, "decode", None)) == 2 and hasattr(vae, "prior") and are_vectors(split.y):
        return _samples_of_vectors(vae, split, source)
    if num_required_arguments(getattr(vae, "decode", None)) == 1 and hasattr(vae, "prior"):
        images = decoded(vae, vae.prior().sample((64,)))
        figure, axes = tiles(images, range(8), range(8))
        prior = "N(0, I)" if isinstance(vae.prior, StandardNormal) else "p(z)"
        axes.set_title(f"Samples: means of p(x|z), z ~ {prior}")
        return figure
    classes = min(getattr(vae, "num_classes", None) or 0, MAX_COLUMNS)
    if classes and hasattr(vae, "prior") and num_required_arguments(getattr(vae, "decode", None)) == 2:
        z = vae.prior().sample((6 * classes,))
        images = shrunk(mean_image(vae.decode(z, torch.arange(len(z), device=z.device) % classes)))
        figure, axes = tiles(images, range(classes), range(6))
        axes.set_xticks([k + 0.5 for k in range(classes)], [str(k) for k in range(classes)])
        axes.set_xlabel("label y")
        axes.set_title("Samples: means of p(x|z, y), z ~ p(z)")
        return figure
    figure, axes = tiles(shrunk(vae.sample(64)), range(8), range(8))
    axes.set_title(f"Samples: {getattr(vae, 'sampled', 'draws from the model')}")
    return figure


def _samples_of_vectors(vae: Any, split: Split, source: str) -> Figure:
    """A row for each of some images: the image, and means of p(x|z, y) at its vector y and draws from the prior."""
    height, width = min(8, len(split.x)), 8
    x, y = like_parameters(vae, split.columns(("x", "y"))[pick_rows(split, height)])
    z = vae.prior().sample((height * width,))
    made = shrunk(mean_image(vae.decode(z, y.repeat_interleave(width, 0)))).unflatten(0, (height, width))
    shown = torch.cat([shrunk(x)[:, None], made], dim=1)
    figure, axes = tiles(shown.flatten(0, 1), [0, *(1.3 + k for k in range(width))], range(height))
    axes.set_xlabel("original,   and samples given its y")
    axes.set_title(f"Samples given the vectors y of {source} images\nmeans of p(x|z, y), z ~ p(z)")
    return figure


def analogies(vae: Any, split: Split, source: str) -> Figure:
    """The style of an image with every label: a row for each of some images whose label is known.

    Raises:
        ValueError: If no label is known.
    """
    if not has_known_labels(split):
        raise ValueError(f"analogies: expected {source} data with a label for some, got none; leave the picture out.")
    x, y = like_parameters(vae, split.columns(("x", "y"))[pick_rows(split, 8, labelled=True)])
    made = vae.analogies(x, y)[:, :MAX_COLUMNS]
    shown = torch.cat([shrunk(x)[:, None], shrunk(made.flatten(0, 1)).unflatten(0, made.shape[:2])], dim=1)
    columns = [0, *(1.3 + k for k in range(made.shape[1]))]
    figure, axes = tiles(shown.flatten(0, 1), columns, range(len(x)))
    axes.set_xticks([column + 0.5 for column in columns], ["$x$", *(str(k) for k in range(made.shape[1]))])
    axes.set_xlabel("original,   and with each label")
    axes.set_title(f"Analogies of {source} images\nmean of p(x|z, y) at the mean of q(z|x, y), for every label y")
    return figure


def interpolations(vae: Any, split: Split, source: str) -> Figure:
    """Straight lines in latent space between the posterior means, or the codes, of pairs of images."""
    height, steps = max(1, min(6, len(split.x) // 2)), 11
    x = like_parameters(vae, pick(split, 2 * height))
    first, last = x[:height], x[-height:]
    t = torch.linspace(0, 1, steps).to(x)[None, :, None]
    q = vae.encode(first)
    a, b = q.mean[:, None], vae.encode(last).mean[:, None]
    between = decoded(vae, (1 - t) * a + t * b)
    columns = [0, *(1.2 + k for k in range(steps)), steps + 1.4]
    images = torch.cat([shrunk(first)[:, None], between, shrunk(last)[:, None]], dim=1)
    figure, axes = tiles(images.flatten(0, 1), columns, range(height))
    ticks = ["$x_a$", *(f"{k / (steps - 1):g}" for k in range(steps)), "$x_b$"]
    axes.set_xticks([column + 0.5 for column in columns], ticks)
    axes.set_xlabel("original $x_a$,   decoded at $t$ = 0 to 1,   original $x_b$")
    made, f, what = (
        ("decoder's output", "f", "code of $x$") if is_point(q) else ("mean of p(x|z)", "\\mu", "mean of q(z|x)")
    )
    axes.set_title(
        f"Interpolations between pairs of {source} images\n"
        f"{made} at $z = (1 - t)\\, {f}(x_a) + t\\, {f}(x_b)$, where ${f}(x)$ is the {what}"
    )
    return figure


def plane(vae: Any) -> Figure:
    """The decoded plane of a model with two latent units."""
    side = 20
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    # The first row is the top one, which has the largest z2.
    images = decoded(vae, like_parameters(vae, torch.cartesian_prod(z.flip(0), z).flip(-1)), MAX_SIDE // 2)
    shown = pixels(images)
    mosaic = np.concatenate(np.concatenate(shown.reshape(side, side, *shown.shape[1:]), axis=1), axis=1)
    width, height = inches(images)
    figure = Figure(figsize=(side * width / 2, side * height / 2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, extent=(-0.5, side - 0.5, -0.5, side - 0.5), aspect="auto")
    ticks, words = range(side), [f"{value:.2f}".replace("-", "−") for value in z.tolist()]
    edges = np.arange(side + 1) - 0.5
    axes.vlines(edges, *edges[[0, -1]], color=FRAME, linewidth=0.6)
    axes.hlines(edges, *edges[[0, -1]], color=FRAME, linewidth=0.6)
    axes.set_xticks(ticks, words, rotation=90)
    axes.set_yticks(ticks, words)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    axes.set_title("Means of p(x|z) over the latent plane, at quantiles of the standard normal")
    return figure
