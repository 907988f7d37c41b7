"""A run in pictures, each written whole or not at all."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure

from pyro_vae.data import Data, Split
from pyro_vae.errors import error_summary
from pyro_vae.evidence import Estimate
from pyro_vae.inference import History
from pyro_vae.models.protocol import evaluation_inputs, evidence_name, loss_name, num_required_arguments, trained_on
from pyro_vae.models.user_code import place_of_error, user_modules_of
from pyro_vae.report.figures.curves import curves
from pyro_vae.report.figures.encoded import Encoded, encode
from pyro_vae.report.figures.images import analogies, interpolations, plane, reconstructions, samples
from pyro_vae.report.figures.latents import latents
from pyro_vae.report.figures.log_px import log_px, worst
from pyro_vae.report.figures.tiles import has_known_labels, like_parameters
from pyro_vae.report.figures.tsne import MIN_POINTS, tsne
from pyro_vae.report.figures.units import traversals, units
from pyro_vae.system.devices import explain
from pyro_vae.system.files import write_atomically
from pyro_vae.system.randomness import own_randomness

DOTS_PER_INCH = 150

#: What makes a picture when its turn has come.
Make = Callable[[], Figure]

T = TypeVar("T")


def draw_pictures(
    vae: Any, data: Data, history: History, directory: Path, seed: int = 0, estimate: Estimate | None = None
) -> list[Path]:
    """Draw the pictures of a run, each written whole or not at all.

    Each is drawn where the model offers what it shows: ``encode``, ``decode(z)``, ``prior`` or ``sample``, ``reconstruct``,
    ``analogies`` (of data whose label is known); the pictures made of images where a datum is one, of shape ``(1, H, W)`` or
    ``(3, H, W)``; pixels are shown clipped to [0, 1]. ``traversals`` and ``units`` need a q(z|x) and a p(z) of independent
    units, for only there is the KL a sum over units. ``curves`` needs an epoch of history, ``latents`` and ``units`` two data,
    ``tsne`` ten, ``log-px`` an estimate, ``worst`` images with one, and ``grid`` images with a latent vector of size 2. Where
    a class of the user's fails at a picture, a warning says so, and the others are drawn.

    Args:
        vae: The model, on any device; its mode (train or eval) is as before at the end.
        data: The data; the test images are shown, the training images where there are none. Of more than 10,000, that
            many evenly spaced ones are looked at, whatever is drawn from them.
        history: A row an epoch.
        directory: Where the PNG files go; made if it is not there.
        seed: Seed of the choice of images and of the draws; the caller's generators are left as they were.
        estimate: Of log p(x) for each of the data shown, in their order; None: it is not drawn.

    Returns:
        The files written, in the order of ``runs.PICTURES``.

    Raises:
        ValueError: If the estimate is of another number of data.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    split, source = (data.train, "training") if data.test is None else (data.test, "test")
    was_training = vae.training
    vae.eval()
    try:
        with torch.no_grad(), own_randomness(seed):
            figures = _figures(vae, split, source, history, estimate)
            found = [_drawn(vae, directory / f"{name}.png", figure) for name, figure in figures]
            return [path for path in found if path is not None]
    finally:
        vae.train(was_training)


def _tried(vae: Any, name: str, make: Callable[[], T]) -> T | None:
    """What is made for a picture; None, with a warning, where a model of the user's fails at it."""
    try:
        return make()
    except Exception as error:
        modules = user_modules_of(vae)
        if not modules or isinstance(error, OSError) or explain(error) is not None:
            raise
        at = place_of_error(error, modules)
        said = error_summary(error) + ("" if at is None else f" ({at})")
        warnings.warn(
            f"picture {name}: expected a model that can be drawn, got {said}; mend it, the others are drawn.",
            stacklevel=4,
        )
        return None


def _drawn(vae: Any, path: Path, make: Make) -> Path | None:
    return _tried(vae, path.stem, lambda: write_figure(path, make()))


def _figures(
    vae: Any, split: Split, source: str, history: History, estimate: Estimate | None
) -> Iterator[tuple[str, Make]]:
    images, plain = _are_images(split), num_required_arguments(getattr(vae, "decode", None)) == 1
    encoded = _tried(vae, "codes", lambda: encode(vae, split)) if hasattr(vae, "encode") else None
    if images and hasattr(vae, "reconstruct"):
        yield "reconstructions", partial(reconstructions, vae, split, source)
    if images and (hasattr(vae, "sample") or (plain and hasattr(vae, "prior"))):
        yield "samples", partial(samples, vae, split, source)
    if images and encoded is not None and plain:
        yield "interpolations", partial(interpolations, vae, split, source)
    if images and plain and encoded is not None and encoded.unit_kl is not None:
        yield "traversals", partial(traversals, vae, split, encoded.unit_kl, source)
    if images and hasattr(vae, "analogies") and has_known_labels(split):
        yield "analogies", partial(analogies, vae, split, source)
    if history.rows:
        yield "curves", partial(curves, history, trained_on(vae), loss_name(vae))
    if encoded is not None:
        yield from _of_codes(encoded, split, source)
    if estimate is not None:
        name = evidence_name(vae, like_parameters(vae, evaluation_inputs(vae, split)[:2]))
        yield from _of_estimate(split, images, source, estimate, name)
    if images and plain and hasattr(vae, "prior") and getattr(vae, "latent_dim", None) == 2:
        yield "grid", partial(plane, vae)


def _of_codes(encoded: Encoded, split: Split, source: str) -> Iterator[tuple[str, Make]]:
    if len(split.x) > 1:
        yield "latents", partial(latents, encoded, source)
    if len(split.x) > 1 and encoded.unit_kl is not None:
        yield "units", partial(units, encoded, encoded.unit_kl, source)
    if len(split.x) >= MIN_POINTS:
        yield "tsne", partial(tsne, encoded, split, source)


def _are_images(split: Split) -> bool:
    return len(split.x.shape) == 4 and split.x.shape[1] in (1, 3)


def draw_estimate(split: Split, source: str, directory: Path, estimate: Estimate, name: str) -> list[Path]:
    """Draw what shows an estimate of log p(x): ``log-px``, and ``worst`` where data are images.

    Args:
        split: The data.
        source: What the data are called.
        directory: Where the PNG files go.
        estimate: Of log p(x) for each of the data, in their order.
        name: What it is called, see :func:`pyro_vae.models.protocol.evidence_name`.

    Returns:
        The files written.
    """
    images = _are_images(split)
    made = _of_estimate(split, images, source, estimate, name)
    return [write_figure(directory / f"{file}.png", make()) for file, make in made]


def _of_estimate(split: Split, images: bool, source: str, estimate: Estimate, name: str) -> Iterator[tuple[str, Make]]:
    yield "log-px", partial(log_px, estimate, split, images, source, name)
    if images:
        yield "worst", partial(worst, estimate, split, source, name)


def write_figure(path: Path, figure: Figure) -> Path:
    """Write a picture, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.12)
    write_atomically(path, buffer.getvalue())
    return path
