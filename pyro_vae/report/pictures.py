"""A run in pictures, each written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyro_vae.data import Data, Split
from pyro_vae.files import write_atomically
from pyro_vae.inference.training import History
from pyro_vae.models.vae import VAE
from pyro_vae.randomness import own_randomness
from pyro_vae.report.curves import curves
from pyro_vae.report.images import interpolations, plane, reconstructions, samples
from pyro_vae.report.latents import latents

DOTS_PER_INCH = 150


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
        with torch.no_grad(), own_randomness(seed):
            figures = _figures(vae, split, source, history)
            return [_write(directory / f"{name}.png", figure) for name, figure in figures]
    finally:
        vae.train(was_training)


def _figures(vae: VAE, split: Split, source: str, history: History) -> Iterator[tuple[str, Figure]]:
    images = len(vae.data_shape) == 3 and vae.data_shape[0] in (1, 3)
    if images:
        yield "reconstructions", reconstructions(vae, split, source)
        yield "samples", samples(vae)
        yield "interpolations", interpolations(vae, split, source)
    if history.rows:
        yield "curves", curves(history)
    if len(split.x) > 1:
        yield "latents", latents(vae, split, source)
    if images and vae.latent_dim == 2:
        yield "grid", plane(vae)


def _write(path: Path, figure: Figure) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.12)
    write_atomically(path, buffer.getvalue())
    return path
