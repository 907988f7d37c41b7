"""Fillings and denoised images stand in their places, with their errors."""

from __future__ import annotations

import torch

from pyro_vae.evidence.inpainting import inpaint
from pyro_vae.models.denoising import DenoisingVAE
from pyro_vae.report.figures.inpainting import denoisings, fillings
from tests.report.examples import (
    SHAPE,
    binary_images,
    pair_of_models,
)


def test_fillings_show_original_seen_fillings_mean_and_spread():
    vae, x = pair_of_models()["VAE"], binary_images(3)
    visible = torch.ones(SHAPE, dtype=torch.bool)
    visible[:, 3:] = False
    found = inpaint(vae, x, visible, num_fillings=4, num_samples=30, num_steps=3, seed=0)
    figure = fillings(x, visible, found, columns=2)
    shown = [torch.tensor(image.get_array()) for image in figure.axes[0].images]
    assert len(shown) == 3 * 6
    torch.testing.assert_close(shown[0].float(), x[0, 0])
    assert bool((shown[1][3:] == 0.5).all())
    torch.testing.assert_close(shown[2].float(), found.images[0, 0, 0])
    torch.testing.assert_close(shown[5].float(), 2 * found.spread[0, 0])


def test_denoisings_say_the_squared_error():
    torch.manual_seed(0)
    vae, x = DenoisingVAE(SHAPE, 2, (4,), noise="masking:0.5").eval(), binary_images(4)
    noisy = vae.corrupt(x)
    figure = denoisings({"denoising": vae}, x, noisy, "masking")
    error = float((noisy - x).square().sum()) / 4
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["clean", f"noisy\nsquared error {error:.1f}"]
    assert labels[2].startswith("denoising\nsquared error")
    assert len(figure.axes[0].images) == 3 * 4
