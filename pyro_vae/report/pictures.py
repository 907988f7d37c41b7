"""A run in pictures: reconstructions, samples, interpolations, curves, latent vectors, the decoded plane."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.distributions import StandardNormal
from pyro_vae.inference.loop import History
from pyro_vae.models.vae import VAE, mean_image

Array = NDArray[np.float64]
Classes = dict[str, NDArray[np.bool_]]

DOTS_PER_INCH = 150
TILE = 0.75  # inches
GAP = 0.04  # of a tile, on each side
FRAME = "0.55"  # without it the white edge of an image is lost on the white page
ENCODER_ROWS = 1000
MAX_POINTS = 5000
MAX_CLASSES = 40  # with more, a legend is longer than the picture

# Okabe and Ito: told apart by every kind of colour vision.
TRAIN, VALIDATION, OBJECTIVE = "#0072B2", "#D55E00", "#009E73"
# Paul Tol's "muted", its palest colours replaced by ones that stand out from white.
PALETTE = ("#332288", "#DDAA33", "#117733", "#CC6677", "#56B4E9", "#882255", "#44AA99", "#000000", "#999933", "#AA4499")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "", "////", "", "....", "\\\\\\\\")


def draw_pictures(vae: VAE, data: Data, history: History, directory: Path, seed: int = 0) -> list[Path]:
    """Draw the pictures of a run, each written whole or not at all.

    ``reconstructions``, ``samples`` and ``interpolations`` are drawn where a datum is an image of shape ``(1, H, W)``
    or ``(3, H, W)``; for other data, such as shape ``(D,)``, only curves and latents are. ``curves`` needs an epoch of
    history, ``latents`` two data, and ``grid`` images with a latent vector of size 2. Pixels are shown clipped to
    [0, 1].

    Args:
        vae: The model, on any device; its mode (train or eval) is as before at the end.
        data: The data; the test images are shown, the training images where there are none.
        history: A row an epoch.
        directory: Where the PNG files go; made if it is not there.
        seed: Seed of the choice of images and of the draws; the caller's generators are left as they were.

    Returns:
        The files written, in the order in which they are named above.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    split, source = (data.train, "training") if data.test is None else (data.test, "test")
    was_training = vae.training
    vae.eval()
    try:
        with torch.no_grad(), _own_randomness(seed):
            figures = _figures(vae, split, source, history)
            return [_write(directory / f"{name}.png", figure) for name, figure in figures]
    finally:
        vae.train(was_training)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    # manual_seed reaches every CUDA device, so every one that is in use must be put back.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _figures(vae: VAE, split: Split, source: str, history: History) -> Iterator[tuple[str, Figure]]:
    images = len(vae.data_shape) == 3 and vae.data_shape[0] in (1, 3)
    if images:
        yield "reconstructions", _reconstructions(vae, split, source)
        yield "samples", _samples(vae)
        yield "interpolations", _interpolations(vae, split, source)
    if history.rows:
        yield "curves", _curves(history)
    if len(split.x) > 1:
        yield "latents", _latents(vae, split, source)
    if images and vae.latent_dim == 2:
        yield "grid", _grid(vae)


def _write(path: Path, figure: Figure) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.12)
    # Not tempfile, whose files nobody else may read.
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _like_parameters(vae: VAE, x: Tensor) -> Tensor:
    return x.to(next(vae.parameters()))


def _pick(split: Split, count: int) -> Tensor:
    """Random images, the classes in turn, so that each is seen and a column of ten holds one class of ten.

    Args:
        split: Images, with or without labels.
        count: How many; fewer where there are not so many.

    Returns:
        Shape ``(count, *data_shape)``.
    """
    order = torch.randperm(len(split.x))
    if split.y is not None:
        labels, index = split.y.cpu()[order].sort(stable=True)
        counts = labels.unique_consecutive(return_counts=True)[1]
        turn = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        order = order[index][turn.argsort(stable=True)]
    return split.x[order[:count].to(split.x.device)]


def _pixels(images: Tensor) -> Array:
    """Images of shape ``(N, C, H, W)`` as matplotlib takes them: ``(N, H, W)`` grey or ``(N, H, W, 3)``."""
    shown = images.clamp(0, 1).double().cpu().permute(0, 2, 3, 1).numpy()
    return shown[..., 0] if shown.shape[-1] == 1 else shown


def _inches(images: Tensor) -> tuple[float, float]:
    """Width and height of a tile: its longer side is ``TILE``."""
    height, width = images.shape[-2:]
    return TILE * width / max(height, width), TILE * height / max(height, width)


def _tiles(images: Tensor, columns: Sequence[float], rows: Sequence[float]) -> tuple[Figure, Axes]:
    """A table of images.

    Args:
        images: Shape ``(R * C, *data_shape)``, row after row.
        columns: Left edges, in tiles from the left; a step above 1 leaves a space.
        rows: Upper edges, in tiles from the top.

    Returns:
        The figure, and its axes in units of tiles, without ticks.
    """
    width, height = _inches(images)
    right, bottom = columns[-1] + 1, rows[-1] + 1
    figure = Figure(figsize=(width * right, height * bottom))
    axes = figure.add_axes((0, 0, 1, 1))
    for k, image in enumerate(_pixels(images)):
        x, y = columns[k % len(columns)], rows[k // len(columns)]
        left, top, side = x + GAP, y + GAP, 1 - 2 * GAP
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(left, left + side, top + side, top), aspect="auto")
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=FRAME, linewidth=0.6))
    axes.set(xlim=(0, right), ylim=(bottom, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _reconstructions(vae: VAE, split: Split, source: str) -> Figure:
    width = min(10, len(split.x))
    height = min(3, len(split.x) // width)
    x = _like_parameters(vae, _pick(split, width * height))
    pairs = torch.stack([part.unflatten(0, (height, width)) for part in (x, vae.reconstruct(x))], dim=1)
    rows = [2.2 * pair + half for pair in range(height) for half in (0, 1)]
    figure, axes = _tiles(pairs.flatten(0, 2), range(width), rows)
    axes.set_yticks([row + 0.5 for row in rows], ["original", "reconstruction"] * height)
    axes.set_title(f"Reconstructions of {source} images\nmean of p(x|z) at one draw z ~ q(z|x)")
    return figure


def _samples(vae: VAE) -> Figure:
    images = mean_image(vae.decode(vae.prior().sample((64,))))
    figure, axes = _tiles(images, range(8), range(8))
    prior = "N(0, I)" if isinstance(vae.prior, StandardNormal) else "p(z)"
    axes.set_title(f"Samples: means of p(x|z), z ~ {prior}")
    return figure


def _interpolations(vae: VAE, split: Split, source: str) -> Figure:
    height, steps = max(1, min(6, len(split.x) // 2)), 11
    x = _like_parameters(vae, _pick(split, 2 * height))
    first, last = x[:height], x[-height:]
    t = torch.linspace(0, 1, steps).to(x)[None, :, None]
    a, b = vae.encode(first).mean[:, None], vae.encode(last).mean[:, None]
    decoded = mean_image(vae.decode((1 - t) * a + t * b))
    columns = [0, *(1.2 + k for k in range(steps)), steps + 1.4]
    images = torch.cat([first[:, None], decoded, last[:, None]], dim=1)
    figure, axes = _tiles(images.flatten(0, 1), columns, range(height))
    ticks = ["$x_a$", *(f"{k / (steps - 1):g}" for k in range(steps)), "$x_b$"]
    axes.set_xticks([column + 0.5 for column in columns], ticks)
    axes.set_xlabel("original $x_a$,   decoded at $t$ = 0 to 1,   original $x_b$")
    axes.set_title(
        f"Interpolations between pairs of {source} images\n"
        "mean of p(x|z) at $z = (1 - t)\\, \\mu(x_a) + t\\, \\mu(x_b)$, where $\\mu(x)$ is the mean of q(z|x)"
    )
    return figure


def _grid(vae: VAE) -> Figure:
    side = 20
    z = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(side) + 0.5) / side)
    # The first row is the top one, which has the largest z2.
    images = mean_image(vae.decode(_like_parameters(vae, torch.cartesian_prod(z.flip(0), z).flip(-1))))
    tiles = _pixels(images)
    mosaic = np.concatenate(np.concatenate(tiles.reshape(side, side, *tiles.shape[1:]), axis=1), axis=1)
    width, height = _inches(images)
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


def _curves(history: History) -> Figure:
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    elbo, rate, distortion, beta = figure.subplots(2, 2, sharex=True).flat
    _draw_bounds(elbo, history)
    _draw_column(rate, history, "rate")
    _draw_column(distortion, history, "distortion")
    for axes, title in ((elbo, "ELBO"), (rate, "Rate"), (distortion, "Distortion")):
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


def _line(axes: Axes, history: History, column: str, color: str, label: str, style: str = "-") -> None:
    marker = "o" if len(history) <= 30 else ""  # one epoch is a point, which a line does not show
    axes.plot(history["epoch"], history[column], style, color=color, label=label, marker=marker, markersize=3.5)


def _has_validation(history: History) -> bool:
    return "validation_elbo" in history.rows[-1]


def _draw_column(axes: Axes, history: History, quantity: str) -> None:
    _line(axes, history, f"train_{quantity}", TRAIN, "training (mean over the epoch)")
    if _has_validation(history):
        _line(axes, history, f"validation_{quantity}", VALIDATION, "validation (band: ±1 standard error)")


def _draw_bounds(axes: Axes, history: History) -> None:
    _draw_column(axes, history, "elbo")
    if _has_validation(history):
        value, error = np.array(history["validation_elbo"]), np.array(history["validation_elbo_std_error"])
        axes.fill_between(history["epoch"], value - error, value + error, color=VALIDATION, alpha=0.2, linewidth=0)
    pairs = zip(history["objective"], history["train_elbo"], strict=True)
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


def _latents(vae: VAE, split: Split, source: str) -> Figure:
    total = len(split.x)
    index = torch.randperm(total)[:MAX_POINTS]
    x = split.x[index.to(split.x.device)]
    classes = _classes(None if split.y is None else split.y.cpu()[index].numpy(), len(x))
    means = torch.cat([vae.encode(_like_parameters(vae, part)).mean for part in x.split(ENCODER_ROWS)])
    points, names = _at_most_two(means.double().cpu().numpy())
    figure = Figure(figsize=(8, _height(points)), layout="constrained")
    axes = figure.subplots()
    (_histogram if len(names) == 1 else _scatter)(axes, points, names, classes)
    amount = f"{total:,}" if total == len(x) else f"{len(x):,} of {total:,}"
    axes.set_title(f"Means of q(z|x) for {amount} {source} data")
    axes.spines[["top", "right"]].set_visible(False)
    if "" not in classes:
        columns, scale = math.ceil(len(classes) / 20), 2 if len(x) > 1000 else 1
        figure.legend(loc="outside right upper", title="label", ncols=columns, markerscale=scale, frameon=False)
    return figure


def _at_most_two(means: Array) -> tuple[Array, list[str]]:
    """Latent vectors of size 1 or 2 as they are, larger ones by their first two principal components.

    Args:
        means: Shape ``(N, Z)``.

    Returns:
        Shape ``(N, min(Z, 2))``, and the name of each column.
    """
    if means.shape[1] <= 2:
        return means, [f"$z_{k + 1}$" for k in range(means.shape[1])]
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, svd_solver="full")
    with np.errstate(invalid="ignore", divide="ignore"):  # no variance at all: 0 / 0
        points = pca.fit_transform(means)
        shares = np.nan_to_num(pca.explained_variance_ratio_)
    return points, [f"principal component {k} ({share:.1%} of the variance)" for k, share in enumerate(shares, start=1)]


def _height(points: Array) -> float:
    """Height of the figure in inches by which a plane of equal units is filled."""
    if points.shape[1] == 1:
        return 5.0
    width, height = np.ptp(points, axis=0) + 1e-12
    return 0.8 + 6.5 * float(np.clip(height / width, 0.4, 1.1))


def _classes(y: NDArray[np.int64] | None, count: int) -> Classes:
    """Label to the rows that have it; one nameless class where there are no labels, or too many to tell apart."""
    labels = np.unique(y) if y is not None else np.empty(0)
    if not 0 < len(labels) <= MAX_CLASSES:
        return {"": np.ones(count, dtype=bool)}
    return {str(label): np.asarray(y == label) for label in labels}


def _histogram(axes: Axes, points: Array, names: list[str], classes: Classes) -> None:
    parts = [points[rows, 0] for rows in classes.values()]
    count = len(classes)
    bins = int(np.clip(2 * math.sqrt(len(points)), 10, 60))
    axes.hist(
        parts,
        bins=bins,
        density=True,
        stacked=True,
        color=[PALETTE[k % len(PALETTE)] for k in range(count)],
        label=list(classes),
        hatch=[HATCHES[k % len(HATCHES)] for k in range(count)],
        edgecolor="white",
        linewidth=0.3,
    )
    axes.set(xlabel=names[0], ylabel="density, stacked by label" if count > 1 else "density")


def _scatter(axes: Axes, points: Array, names: list[str], classes: Classes) -> None:
    size = float(np.clip(10_000 / len(points), 12, 28))
    for k, (label, rows) in enumerate(classes.items()):
        # The markers are shifted by one every ten classes, so that no pair of colour and marker comes twice.
        color, marker = PALETTE[k % len(PALETTE)], MARKERS[(k + k // len(PALETTE)) % len(MARKERS)]
        x, y = points[rows].T
        axes.scatter(x, y, s=size, color=color, marker=marker, alpha=0.8, linewidths=0, label=label)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    _name_classes(axes, points, classes)


def _name_classes(axes: Axes, points: Array, classes: Classes) -> None:
    """Write each label at its class's median, save where another label is already; the legend has them all."""
    taken: list[Array] = []
    for label, rows in classes.items():
        centre = np.median(points[rows], axis=0)
        if all(np.abs(centre - other).max() > 0.04 * np.ptp(points, axis=0).max() for other in taken):
            taken.append(centre)
            outline = [withStroke(linewidth=3, foreground="white")]
            x, y = centre.tolist()
            axes.text(x, y, label, fontsize=14, weight="bold", ha="center", va="center", path_effects=outline)
