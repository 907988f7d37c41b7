"""Pictures made of images show what the model makes, in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae.data import Data
from pyro_vae.models.base import mean_image
from pyro_vae.models.vae import VAE
from pyro_vae.report.figures import images
from tests.report.examples import (
    make_vae,
)


def test_reconstructions_stand_below_their_originals(digits: Data) -> None:
    class Echo(VAE):
        def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
            return 1 - x

    assert digits.test is not None
    figure = images.reconstructions(Echo((1, 8, 8), 2, hidden=()), digits.test, "test")
    shown = {tuple(image.get_extent()): np.asarray(image.get_array()) for image in figure.axes[0].images}
    tops = sorted({extent[3] for extent in shown})
    assert len(shown) == 60
    assert len(tops) == 6
    for (left, right, bottom, top), pixels in shown.items():
        if tops.index(top) % 2 == 0:
            assert np.array_equal(shown[left, right, bottom + 1, top + 1], 1 - pixels)


def test_interpolations_run_from_one_posterior_mean_to_the_other(digits: Data) -> None:
    assert digits.test is not None
    vae = make_vae(3)
    with torch.no_grad():
        axes = images.interpolations(vae, digits.test, "test").axes[0]
        row = [torch.from_numpy(np.asarray(image.get_array())).float()[None, None] for image in axes.images[:13]]
        ends = vae.encode(torch.cat([row[0], row[-1]])).mean
        expected = [mean_image(vae.decode(z[None])) for z in (ends[0], ends.mean(0), ends[1])]
    for found, wanted in zip((row[1], row[6], row[11]), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_grid_has_its_axes_the_right_way_round() -> None:
    vae = make_vae(2)
    with torch.no_grad():
        axes = images.plane(vae).axes[0]
        z1, z2 = (
            [float(t.get_text().replace("−", "-")) for t in ticks]
            for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
        )
        mosaic = np.asarray(axes.images[0].get_array())
        assert z1 == z2 == sorted(z1)
        # Column 17 and row 3 from below; imshow draws the first row at the top.
        tile = mosaic[8 * (19 - 3) : 8 * (20 - 3), 8 * 17 : 8 * 18]
        exact = torch.distributions.Normal(0.0, 1.0).icdf((torch.tensor([17.0, 3.0]) + 0.5) / 20)
        torch.testing.assert_close(torch.from_numpy(tile).float(), mean_image(vae.decode(exact))[0])
    assert [z1[17], z2[3]] == pytest.approx(exact.tolist(), abs=0.006)
