from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from pyro_vae.evidence.criticism.image_statistics import components, image_statistics, radial_spectrum


def test_components_by_hand():
    pictures = ["#.#.|....|##..|##..", "#...|.#..|..#.|...#", "....|....|....|....", "####|#..#|#..#|####"]
    ink = np.array([[[c == "#" for c in row] for row in picture.split("|")] for picture in pictures])
    assert components(ink).tolist() == [3, 1, 0, 1]


def test_components_image_by_image():
    ink = np.random.default_rng(0).random((200, 9, 7)) < np.linspace(0, 1, 200)[:, None, None]
    alone = [ndimage.label(image, np.ones((3, 3)))[1] for image in ink]
    assert components(ink).tolist() == alone
    assert max(alone) > 8


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (9, 5)])
def test_a_wave_has_power_at_its_frequency_alone(height, width):
    """cos(2 pi f k / W) has |x_k|^2 = (H W / 2)^2 at two frequencies and 0 elsewhere."""
    side, f = max(height, width), 2
    axis = 1 if width >= height else 0
    wave = torch.cos(2 * math.pi * f * torch.arange(side, dtype=torch.float64) / side)
    image = (wave if axis else wave[:, None]).expand(height, width)
    found = radial_spectrum(3.0 + image)
    frequencies = [
        [(i * side / height, j * side / width) for j in range(-(width // 2), (width + 1) // 2)]
        for i in range(-(height // 2), (height + 1) // 2)
    ]
    count = sum(round(math.hypot(*pair)) == f for row in frequencies for pair in row)
    assert found.shape == (side // 2,)
    assert float(found[f - 1]) == pytest.approx(2 * height * width / 4 / count)
    assert float(found.sum() - found[f - 1]) < 1e-9


def test_white_noise_has_its_variance_at_every_frequency():
    images = 0.5 * torch.randn(2000, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = radial_spectrum(images)
    errors = found.std(0) / math.sqrt(2000)
    assert bool(((found.mean(0) - 0.25).abs() < 4 * errors).all())


def test_statistics_of_grey_and_of_colour():
    grey = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    one, three = image_statistics(grey), image_statistics(grey[:, None].expand(-1, 3, -1, -1))
    for ours, theirs in zip(one, three, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(one.ink, grey.double().mean((1, 2)))
    assert not torch.equal(one.components, image_statistics(grey, threshold=0.9).components)


def test_bad_images():
    for shape in ((8, 8), (0, 8, 8), (2, 1, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"images: expected shape \(N, H, W\) or \(N, C, H, W\), got"):
            image_statistics(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected finite pixels, got 64"):
        image_statistics(torch.full((1, 8, 8), math.nan))
