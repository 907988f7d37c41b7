"""Autoencoders beside VAEs: planes, walks and codes show what the models give."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.report.figures.autoencoders import codes, planes
from tests.report.examples import (
    SHAPE,
    binary_images,
    pair_of_models,
)


@pytest.mark.parametrize("labels", [True, False])
def test_planes_have_a_column_for_each_model(labels):
    x = binary_images()
    figure = planes(pair_of_models(), Split(x, torch.arange(40) % 3 if labels else None), "test")
    assert len(figure.axes) == 4 * 2
    assert [axes.get_title() for axes in figure.axes[::4]] == ["autoencoder", "VAE"]
    points = figure.axes[0].collections
    assert sum(len(part.get_offsets()) for part in points) == 40
    assert len(points) == (3 if labels else 1)
    words = [figure.axes[k].get_xlabel() for k in (2, 6, 3, 7)]
    assert words[:2] == ["decoded z ~ N(0, I), no prior", "samples, z ~ p(z) = N(0, I)"]
    assert words[2] == words[3] == "decoded z ~ normal fitted to the codes"
    assert figure.axes[2].images[0].get_array().shape == (6 * 6, 6 * 5)


def test_planes_decode_the_same_draws_and_those_of_the_codes():
    """Of a decoder that gives its code back as two pixels, the images are the draws."""
    pair, split = {}, Split(torch.rand(400, 1, 1, 2), None)
    for k in range(2):
        model = Autoencoder((1, 1, 2), 2, ())
        for network in (model.encoder, model.decoder):
            torch.nn.init.eye_(network.head.weight)
            torch.nn.init.zeros_(network.head.bias)
        with torch.no_grad():
            model.encoder.head.weight.mul_(0.01)
            model.encoder.head.bias.fill_(0.5)  # codes near the middle of the pixels' range
        pair[str(k)] = model
    torch.manual_seed(0)
    figure = planes(pair, split, "test")
    standard, fitted = (
        [torch.tensor(figure.axes[k].images[0].get_array()).reshape(6, 6, 2) for k in rows] for rows in ((2, 6), (3, 7))
    )
    torch.testing.assert_close(standard[0], standard[1])
    clipped = (standard[0] == 0) | (standard[0] == 1)
    assert bool(clipped.any())  # N(0, I) lies far outside of the codes
    assert not bool(clipped.all())
    codes = pair["0"].encode(split.x).mean.detach().double()
    spread = codes.std(0)
    assert bool(((fitted[0].flatten(0, 1) - codes.mean(0)).abs() < 5 * spread).all())
    assert bool(((fitted[0].flatten(0, 1).std(0) / spread - 1).abs() < 5 / (2 * 36) ** 0.5).all())


def test_a_walk_begins_and_ends_at_the_codes_of_images():
    model = pair_of_models()["autoencoder"]
    figure = planes({"one": model}, Split(binary_images(), None), "test")
    known = model.encode(binary_images()).mean.detach()
    for line in figure.axes[0].lines:
        for point in torch.tensor(line.get_xydata(), dtype=torch.float32):
            assert float((known - point).norm(dim=1).min()) < 1e-5


def test_planes_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="models: expected latent_dim 2, got 3 in 'VAE'"):
        planes({"VAE": pv.VAE(SHAPE, 3, (4,))}, Split(binary_images(), None), "test")
    with pytest.raises(ValueError, match="models: expected at least one model, got none"):
        planes({}, Split(binary_images(), None), "test")


def test_codes_are_drawn_as_bars():
    model = pv.VAE(SHAPE, 4, (4,)).eval()
    x = binary_images(3)
    figure = codes(model, x, "Faces")
    z = model.encode(x).mean.detach()
    heights = [[bar.get_height() for bar in figure.axes[3 + k].patches] for k in range(3)]
    torch.testing.assert_close(torch.tensor(heights), z.double())
    assert figure.axes[0].images[0].get_array().shape == SHAPE[1:]
