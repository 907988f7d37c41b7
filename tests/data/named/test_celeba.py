"""CelebA, read from small files in its format."""

from __future__ import annotations

import pickle

import pytest
import torch

from pyro_vae.data import NAMED, load
from pyro_vae.data.source import Request
from tests.data.fabricated import fabricate


@pytest.mark.parametrize(("asked", "size"), [((), (64, 64)), ((148,), (148, 148)), ((16, 24), (16, 24))])
def test_celeba_is_split_by_its_list_and_cropped_around_the_centre(asked, size, tmp_path, monkeypatch):
    made = fabricate("celeba", monkeypatch)
    data = load("celeba", data_dir=made.put(tmp_path), download=False, image_size=asked, mode="none")
    assert data.sizes == "4 train, 2 validation, 3 test"
    assert data.data_shape == (3, *size)
    for split, images in made.images.items():
        x, y = getattr(data, split)
        assert y is None
        assert torch.equal((x[:, 0] > 0.15).sum(), torch.tensor(0))  # nothing of the red border
        brightness = torch.from_numpy(images[:, 1, 0, 0]).float() / 255
        assert torch.allclose(x[:, 1].mean((1, 2)), brightness, atol=0.01)  # in the order of the list


def test_celeba_holds_paths_and_is_read_by_workers(tmp_path, monkeypatch):
    made = fabricate("celeba", monkeypatch)
    x = NAMED["celeba"](Request((made.put(tmp_path),), download=False)).train.x
    rows = torch.tensor([2, 0])
    again = pickle.loads(pickle.dumps(x))
    assert torch.equal(again[rows], x.in_memory()[rows])
    assert len(pickle.dumps(x)) < 3000


def test_a_photograph_that_is_broken_or_small_is_named(tmp_path, monkeypatch):
    made = fabricate("celeba", monkeypatch)
    whole = made.files["celeba/img_align_celeba/000001.jpg"]
    made.files["celeba/img_align_celeba/000001.jpg"] = whole[: len(whole) // 2]
    with pytest.raises(ValueError, match=r"^celeba: photograph .*000001.jpg cannot be read \(image file is trunc"):
        load("celeba", data_dir=made.put(tmp_path), download=False)
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "celeba" / "img_align_celeba" / "000001.jpg")
    with pytest.raises(ValueError, match=r"000001.jpg cannot be read \(64 x 64 instead of 178 x 218 pixels\)"):
        load("celeba", data_dir=tmp_path, download=False)


def test_celeba_with_files_missing_or_a_broken_list_is_refused(tmp_path, monkeypatch):
    made = fabricate("celeba", monkeypatch)
    made.put(tmp_path)
    (tmp_path / "celeba" / "img_align_celeba" / "000004.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 9 files are missing in .*img_align_celeba, such as 000004.jpg"):
        load("celeba", data_dir=tmp_path, download=False)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg\n")
    with pytest.raises(
        ValueError, match=r"^celeba: the files in .*a line of list_eval_partition.txt is not FILE 0, FILE 1 or FILE 2"
    ):
        load("celeba", data_dir=tmp_path, download=False)
