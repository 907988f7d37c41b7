"""What named sets give, read from small files in the formats of the real ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.data import NAMED, load
from pyro_vae.data.__main__ import main
from pyro_vae.data.named.registry import FILES
from pyro_vae.data.source import Request
from tests.data.fabricated import fabricate

IN_FILES = [files.name for files in FILES]
#: Sets whose pixels are those of the files.
AS_STORED = [name for name in IN_FILES if name not in ("omniglot", "celeba")]


def test_sets_in_files_carry_their_names():
    assert all(NAMED[files.name] is files for files in FILES)
    assert {"digits", "shapes", *IN_FILES} == set(NAMED)


def part(parts, split):
    return getattr(parts, split)


@pytest.mark.parametrize("name", AS_STORED)
def test_images_and_labels_of_each_split_are_those_of_the_files(name, tmp_path, monkeypatch):
    made = fabricate(name, monkeypatch)
    parts = NAMED[name](Request((made.put(tmp_path),), download=False))
    assert parts.validation is None
    for split, images in made.images.items():
        x, y = part(parts, split)
        assert torch.equal((x.in_memory() * 255).round(), torch.from_numpy(images).float())
        assert (float(x.in_memory().min()), float(x.in_memory().max())) == (0.0, 1.0)
        assert y.dtype == torch.int64
        assert y.tolist() == made.labels[split].tolist()


def test_letters_stand_upright(tmp_path, monkeypatch):
    made = fabricate("emnist-letters", monkeypatch)
    made.put(tmp_path)
    from torchvision.datasets import EMNIST

    as_torchvision_gives_them = EMNIST(tmp_path, split="letters", train=True)
    x, y = NAMED["emnist-letters"](Request((tmp_path,), download=False)).train
    assert torch.equal((x.in_memory()[:, 0] * 255).byte(), as_torchvision_gives_them.data.transpose(1, 2))
    assert torch.equal(y, as_torchvision_gives_them.targets - 1)


@pytest.mark.parametrize("name", ["svhn", "cifar10"])
def test_channels_come_first_in_the_order_red_green_blue(name, tmp_path, monkeypatch):
    from torchvision import datasets

    fabricate(name, monkeypatch).put(tmp_path)
    train = {"svhn": {"split": "train"}, "cifar10": {"train": True}}[name]
    picture, _ = getattr(datasets, name.upper())(tmp_path, **train)[3]
    x = load(name, data_dir=tmp_path, download=False, val_size=0, mode="none").train.x[3]
    assert picture.mode == "RGB"
    assert torch.equal((x * 255).round(), torch.from_numpy(np.array(picture)).permute(2, 0, 1).float())


@pytest.mark.parametrize(("asked", "size"), [((), 28), ((40,), 40), ((105,), 105)])
def test_ink_of_omniglot_is_1_where_it_was_drawn(asked, size, tmp_path, monkeypatch):
    made = fabricate("omniglot", monkeypatch)
    data = load("omniglot", data_dir=made.put(tmp_path), download=False, image_size=asked, val_size=0, mode="none")
    assert data.data_shape == (1, size, size)
    for split in ("train", "test"):
        x, y = part(data, split)
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
        assert torch.equal(part(parts, split).x.in_memory() * 255, torch.from_numpy(made.images[split]).float())


def test_omniglot_in_an_archive_that_lacks_images_is_refused(tmp_path, monkeypatch):
    made = fabricate("omniglot", monkeypatch)
    made.files["omniglot-py/images_background.zip"] = made.files["omniglot-py/images_evaluation.zip"]
    with pytest.raises(ValueError, match=r"0 images instead of 6 in images_background.zip"):
        load("omniglot", data_dir=made.put(tmp_path), download=False)


@pytest.mark.parametrize(("asked", "size"), [((), (64, 64)), ((148,), (148, 148)), ((16, 24), (16, 24))])
def test_celeba_is_split_by_its_list_and_cropped_around_the_centre(asked, size, tmp_path, monkeypatch):
    made = fabricate("celeba", monkeypatch)
    data = load("celeba", data_dir=made.put(tmp_path), download=False, image_size=asked, mode="none")
    assert data.sizes == "4 train, 2 validation, 3 test"
    assert data.data_shape == (3, *size)
    for split, images in made.images.items():
        x, y = part(data, split)
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
    with pytest.raises(
        ValueError, match=r"^celeba: expected a photograph .* in .*000001.jpg, got none \(image file is trunc"
    ):
        load("celeba", data_dir=made.put(tmp_path), download=False)
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "celeba" / "img_align_celeba" / "000001.jpg")
    with pytest.raises(ValueError, match=r"000001.jpg, got none \(64 x 64 instead of 178 x 218 pixels\)"):
        load("celeba", data_dir=tmp_path, download=False)


def test_celeba_with_files_missing_or_a_broken_list_is_refused(tmp_path, monkeypatch):
    made = fabricate("celeba", monkeypatch)
    made.put(tmp_path)
    (tmp_path / "celeba" / "img_align_celeba" / "000004.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 9 files are missing in .*img_align_celeba, such as 000004.jpg"):
        load("celeba", data_dir=tmp_path, download=False)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg\n")
    with pytest.raises(ValueError, match=r"^celeba: expected its files .*not a file name and 0, 1 or 2 on each line"):
        load("celeba", data_dir=tmp_path, download=False)


@pytest.mark.parametrize("name", ["digits", "kmnist", "svhn"])
def test_image_size_acts_on_every_split(name, tmp_path, monkeypatch):
    if name != "digits":
        fabricate(name, monkeypatch).put(tmp_path)
    size = {"val_size": None if name == "digits" else 2, "mode": "none"}
    data = load(name, data_dir=tmp_path, download=False, image_size=(16,), **size)
    plain = load(name, data_dir=tmp_path, download=False, **size)
    for split in ("train", "validation", "test"):
        x, whole = part(data, split).x, part(plain, split).x
        assert x.shape[-2:] == (16, 16)
        assert torch.allclose(x.mean((2, 3)), whole.mean((2, 3)), atol=0.02)
        assert torch.equal(part(data, split).y, part(plain, split).y)


@pytest.mark.slow
def test_fashion_mnist(data_dir):
    if not (data_dir / "FashionMNIST" / "raw").is_dir():
        pytest.skip("Fashion-MNIST is not here")
    data = load("fashion-mnist", data_dir=data_dir, download=False, val_size=0, mode="none")
    assert data.sizes == "60,000 train, 10,000 test"
    assert data.data_shape == (1, 28, 28)
    # Mean and standard deviation of the 60,000 training images, known from every tutorial's normalization.
    assert float(data.train.x.mean(dtype=torch.float64)) == pytest.approx(0.2860, abs=5e-5)
    assert float(data.train.x.double().std()) == pytest.approx(0.3530, abs=5e-5)
    assert data.train.y.bincount().tolist() == [6000] * 10
    assert data.test.y.bincount().tolist() == [1000] * 10


def test_the_command_says_where_the_files_are(tmp_path, monkeypatch, capsys):
    for name in ("kmnist", "svhn"):
        fabricate(name, monkeypatch).put(tmp_path)
    assert main(["kmnist", "svhn", "digits", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"kmnist: 7 train, 4 test, each 1 x 28 x 28; {Path(tmp_path, 'KMNIST', 'raw')}",
        f"svhn: 7 train, 4 test, each 3 x 32 x 32; {tmp_path}",
        "digits: 1,617 train, 180 test, each 1 x 8 x 8; needs no files",
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "names: expected at least one of digits, shapes, mnist"),
        (["svnh"], "unknown data set 'svnh'"),
        (["digits", "./data.npy"], "unknown data set './data.npy'"),
    ],
)
def test_the_command_refuses_what_is_no_name(words, named, capsys):
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"pyro_vae.data: error: {named}")
    assert error.count("\n") == 1
