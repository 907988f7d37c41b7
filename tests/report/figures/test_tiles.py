"""Tables of images: which images, how large."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.data import Data, Split
from pyro_vae.models.base import mean_image
from pyro_vae.report.figures import tiles
from tests.report.examples import (
    make_vae,
)


def test_classes_are_picked_in_turn(digits: Data) -> None:
    assert digits.test is not None
    picked = tiles.pick(digits.test, 30)
    rows = (picked[:, None] == digits.test.x[None]).flatten(2).all(-1).int().argmax(1)
    assert digits.test.y is not None
    assert digits.test.y[rows].tolist() == list(range(10)) * 3
    assert len(tiles.pick(Split(digits.test.x[:7]), 30)) == 7


def test_large_images_are_averaged_down_and_decoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(320.0).div(320).expand(2, 1, 480, 320)
    small = tiles.shrunk(ramp)
    assert small.shape == (2, 1, 160, 107)
    torch.testing.assert_close(small[0, 0, 80], torch.linspace(0.5, 319.5, 107) / 320 * 0.997, atol=0.01, rtol=0)
    assert tiles.shrunk(ramp[..., :100, :100]).shape == (2, 1, 100, 100)
    vae, z = make_vae(3), torch.randn(5, 2, 3)
    whole = tiles.decoded(vae, z)
    monkeypatch.setattr(tiles, "rows_of", lambda shape: 3)
    torch.testing.assert_close(tiles.decoded(vae, z), whole)
    torch.testing.assert_close(whole, mean_image(vae.decode(z)).detach())
