"""Omniglot, read from small files in its format."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.data import NAMED, load
from pyro_vae.data.source import Request
from tests.data.fabricated import fabricate


@pytest.mark.parametrize(("asked", "size"), [((), 28), ((40,), 40), ((105,), 105)])
def test_ink_of_omniglot_is_1_where_it_was_drawn(asked, size, tmp_path, monkeypatch):
    made = fabricate("omniglot", monkeypatch)
    data = load("omniglot", data_dir=made.put(tmp_path), download=False, image_size=asked, val_size=0, mode="none")
    assert data.data_shape == (1, size, size)
    for split in ("train", "test"):
        x, y = getattr(data, split)
        ink = torch.from_numpy(made.images[split]).double() / 255
        assert y.tolist() == made.labels[split].tolist()
        # At any size it has the same share of the image and the same centre; grey values are kept in 255ths.
        assert x.double().mean((1, 2, 3)).tolist() == pytest.approx(ink.mean((1, 2, 3)).tolist(), abs=0.002)
        assert torch.allclose(middle(x.double()), middle(ink), atol=0.01)
        assert float(x.max()) == pytest.approx(1, abs=0.01)


def middle(images: torch.Tensor) -> torch.Tensor:
    """Row and column of the centre of the ink, from -1 to 1, shape ``(N, 2)``."""
    images = images / images.sum((2, 3), keepdim=True)
    at = [(2 * torch.arange(n, dtype=images.dtype) + 1) / n - 1 for n in images.shape[-2:]]
    return torch.stack([(images.sum((1, 3)) * at[0]).sum(1), (images.sum((1, 2)) * at[1]).sum(1)], 1)


def test_omniglot_at_its_own_size_is_its_files_inverted(tmp_path, monkeypatch):
    made = fabricate("omniglot", monkeypatch)
    made.put(tmp_path)
    parts = NAMED["omniglot"](Request((tmp_path,), download=False, image_size=(105, 105)))
    for split in ("train", "test"):
        assert torch.equal(getattr(parts, split).x.in_memory() * 255, torch.from_numpy(made.images[split]).float())


def test_omniglot_in_an_archive_that_lacks_images_is_refused(tmp_path, monkeypatch):
    made = fabricate("omniglot", monkeypatch)
    made.files["omniglot-py/images_background.zip"] = made.files["omniglot-py/images_evaluation.zip"]
    with pytest.raises(ValueError, match=r"0 images instead of 6 in images_background.zip"):
        load("omniglot", data_dir=made.put(tmp_path), download=False)
