"""Sets that torchvision reads: their images and labels are those of small files in the formats of the real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae.data import NAMED, load
from pyro_vae.data.named.registry import FILES
from pyro_vae.data.source import Request
from tests.data.fabricated import fabricate

#: Sets whose pixels are those of the files.
AS_STORED = [files.name for files in FILES if files.name not in ("omniglot", "celeba")]


@pytest.mark.parametrize("name", AS_STORED)
def test_images_and_labels_of_each_split_are_those_of_the_files(name, tmp_path, monkeypatch):
    made = fabricate(name, monkeypatch)
    parts = NAMED[name](Request((made.put(tmp_path),), download=False))
    assert parts.validation is None
    for split, images in made.images.items():
        x, y = getattr(parts, split)
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
