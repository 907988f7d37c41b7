"""Pictures made of images: reconstructions, samples, interpolations, the decoded plane."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_vae.data import Inputs, Split
from pyro_vae.data.labels import are_vectors
from pyro_vae.distributions import Prior
from pyro_vae.models.base import mean_image
from pyro_vae.models.protocol import (
    Autoencodes,
    Decodes,
    PyroModel,
    Reconstructs,
    call_with_inputs,
    decodes,
    evaluation_inputs,
    has_bound,
    method_of,
    num_required_arguments,
)
from pyro_vae.report.figures.encoded import is_point
from pyro_vae.report.figures.tiles import (
    FRAME,
    MAX_SIDE,
    decoded,
    has_known_labels,
    inches,
    like_parameters,
    mosaic,
    pick,
    pick_rows,
    shrunk,
    tiles,
    tiles_beside,
)

MAX_COLUMNS = 12  # with more labels, only the first have a column


def reconstructions(vae: Reconstructs, split: Split, source: str) -> Figure:
    """Draw images, each above its reconstruction, in up to three rows.

    Args:
        vae: A model of images with ``reconstruct``.
        split: The images.
        source: Name of the data, such as ``test``.
    """
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


def _reconstructed(vae: Reconstructs) -> str:
    """Describe the output of the model's ``reconstruct``."""
    if not has_bound(vae):
        return "decoded from their codes"
    if _decoder_inputs(vae) == 2:
        given = num_required_arguments(vae.reconstruct) == 2
        return "mean of p(x|z, y) at one draw z ~ q(z|x, y)" if given else "mean image at one draw from the guide"
    return "mean of p(x|z) at one draw z ~ q(z|x)"


def samples(vae: PyroModel, split: Split, source: str) -> Figure:
    """Draw samples of the model.

    For a model with ``decode(z)``, the figure shows means of p(x|z) at 64 draws from the prior. For a model with
    ``decode(z, y)``, it has a column for each label y; if y is a vector, it has a row for each of up to 8 images, with samples
    given the y of the image. For every other model, it shows draws from the model's ``sample``.

    Args:
        vae: A model of images.
        split: The images.
        source: Name of the data, such as ``test``.
    """
    if decodes(vae):
        if _decoder_inputs(vae) == 2 and are_vectors(split.y):
            return _samples_of_vectors(vae, split, source)
        if _decoder_inputs(vae) == 1:
            return _samples_of_prior(vae)
        classes = min(getattr(vae, "num_classes", None) or 0, MAX_COLUMNS)
        if classes and _decoder_inputs(vae) == 2:
            return _samples_of_labels(vae, classes)
    sample = method_of(vae, "sample")
    assert sample is not None
    figure, axes = tiles(shrunk(sample(64)), range(8), range(8))
    axes.set_title(f"Samples: {getattr(vae, 'sampled', 'draws from the model')}")
    return figure


def _decoder_inputs(vae: PyroModel) -> int:
    """Count the arguments that ``decode`` needs; return 0 without ``decode``."""
    return num_required_arguments(method_of(vae, "decode"))


def _samples_of_prior(vae: Decodes) -> Figure:
    figure, axes = tiles(decoded(vae, vae.prior().sample((64,))), range(8), range(8))
    prior = "N(0, I)" if isinstance(vae.prior, Prior) and vae.prior.standard else "p(z)"
    axes.set_title(f"Samples: means of p(x|z), z ~ {prior}")
    return figure


def _samples_of_labels(vae: Decodes, classes: int) -> Figure:
    """Draw means of p(x|z, y), a column for each label."""
    z = vae.prior().sample((6 * classes,))
    images = shrunk(mean_image(vae.decode(z, torch.arange(len(z), device=z.device) % classes)))
    figure, axes = tiles(images, range(classes), range(6))
    axes.set_xticks([k + 0.5 for k in range(classes)], [str(k) for k in range(classes)])
    axes.set_xlabel("label y")
    axes.set_title("Samples: means of p(x|z, y), z ~ p(z)")
    return figure


def _samples_of_vectors(vae: Decodes, split: Split, source: str) -> Figure:
    """Draw images, each beside samples given the image's vector y."""
    height, width = min(8, len(split.x)), 8
    x, y = like_parameters(vae, split.inputs(("x", "y"))[pick_rows(split, height)])
    z = vae.prior().sample((height * width,))
    made = shrunk(mean_image(vae.decode(z, y.repeat_interleave(width, 0)))).unflatten(0, (height, width))
    figure, axes, _ = tiles_beside(x, made)
    axes.set_xlabel("original, then samples given its y")
    axes.set_title(f"Samples given the vectors y of {source} images\nmeans of p(x|z, y), z ~ p(z)")
    return figure


def analogies(vae: PyroModel, split: Split, source: str) -> Figure:
    """Draw labelled images, each beside versions of it with every label.

    Args:
        vae: A model of images with ``analogies``.
        split: The images.
        source: Name of the data, such as ``test``.

    Raises:
        ValueError: If no label is known, or the model has no ``analogies``.
    """
    if not has_known_labels(split):
        raise ValueError(
            f"analogies: expected {source} data with known labels, got no known label; leave the picture out."
        )
    if (make := method_of(vae, "analogies")) is None:
        raise ValueError(
            f"analogies: expected a model with analogies(x, y), got {type(vae).__name__} without this method."
        )
    x, y = like_parameters(vae, split.inputs(("x", "y"))[pick_rows(split, 8, labelled=True)])
    made = make(x, y)[:, :MAX_COLUMNS]
    figure, axes, middles = tiles_beside(x, shrunk(made.flatten(0, 1)).unflatten(0, made.shape[:2]))
    axes.set_xticks(middles, ["$x$", *(str(k) for k in range(made.shape[1]))])
    axes.set_xlabel("original, then the image with each label")
    axes.set_title(f"Analogies of {source} images\nmean of p(x|z, y) at the mean of q(z|x, y), for every label y")
    return figure


def interpolations(vae: Autoencodes, split: Split, source: str) -> Figure:
    """Decode points on straight lines between the codes of two images.

    Args:
        vae: A model of images with ``encode`` and ``decode(z)``.
        split: The images.
        source: Name of the data, such as ``test``.
    """
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


def plane(vae: Decodes) -> Figure:
    """Decode a grid of points in the latent plane.

    The grid lies at quantiles of normal distributions: of N(0, I) if that is the prior, otherwise of normals with the means
    and scales of the prior.
    """
    side = 20
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    z1, z2, name = quantiles, quantiles, "the standard normal"
    if isinstance(vae.prior, Prior) and not vae.prior.standard:
        prior = vae.prior()
        z1, z2 = prior.mean.cpu()[:, None] + prior.stddev.cpu()[:, None] * quantiles
        name = "normals with the mean and scale of p(z)"
    # The first row is the top one, which has the largest z2.
    images = decoded(vae, like_parameters(vae, torch.cartesian_prod(z2.flip(0), z1).flip(-1)), MAX_SIDE // 2)
    width, height = inches(images)
    figure = Figure(figsize=(side * width / 2, side * height / 2))
    axes = figure.add_axes((0, 0, 1, 1))
    extent = (-0.5, side - 0.5, -0.5, side - 0.5)
    axes.imshow(mosaic(images, side), cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
    ticks, words = range(side), [[f"{value:.2f}".replace("-", "−") for value in z.tolist()] for z in (z1, z2)]
    edges = np.arange(side + 1) - 0.5
    axes.vlines(edges, *edges[[0, -1]], color=FRAME, linewidth=0.6)
    axes.hlines(edges, *edges[[0, -1]], color=FRAME, linewidth=0.6)
    axes.set_xticks(ticks, words[0], rotation=90)
    axes.set_yticks(ticks, words[1])
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    axes.set_title(f"Means of p(x|z) over the latent plane, at quantiles of {name}")
    return figure
