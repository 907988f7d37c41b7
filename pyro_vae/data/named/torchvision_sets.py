"""Data sets from torchvision, kept in memory as uint8."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.source import Part, Parts, Request
from pyro_vae.data.stored import MemoryReader, Scaled, Stored


def part_of(values: NDArray[np.uint8], labels: ArrayLike) -> Part:
    """Make a split of a data set from images and labels.

    Args:
        values: Images, shape ``(N, C, H, W)``, uint8.
        labels: Labels, shape ``(N,)``.

    Raises:
        ValueError: If there are no images, or the number of labels is not N.
    """
    y = torch.from_numpy(np.asarray(labels, np.int64))
    if len(values) != len(y) or len(y) == 0:
        raise ValueError(f"{len(values)} images and {len(y)} labels")
    return Part(Stored(MemoryReader(np.ascontiguousarray(values), Scaled(255))), y)


def mnist_like(name: str, kind: str) -> FileSet:
    """Make a data set from a torchvision class with MNIST's file names.

    Args:
        name: Name of the data set.
        kind: Name of the torchvision class.
    """
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = tuple(f"{kind}/raw/{stem}-ubyte" for stem in stems)

    def opened(folder: Path, **options: bool) -> Any:
        from torchvision import datasets

        return getattr(datasets, kind)(folder, **options)

    def read(folder: Path, _request: Request) -> Parts:
        train, test = (opened(folder, train=train) for train in (True, False))
        return Parts(
            part_of(train.data[:, None].numpy(), train.targets), test=part_of(test.data[:, None].numpy(), test.targets)
        )

    def fetch(folder: Path) -> None:
        opened(folder, download=True)

    return FileSet(name, files, read, fetch, archives=tuple(f"{file}.gz" for file in files))


def _emnist(folder: Path, train: bool, download: bool = False) -> Any:
    from torchvision.datasets import EMNIST

    return EMNIST(folder, split="letters", train=train, download=download)


def _read_emnist(folder: Path, _request: Request) -> Parts:
    """Read EMNIST's letters: turn the images upright, count labels from 0.

    In the files, each image is transposed, and labels are counted from 1.
    """
    train, test = (_emnist(folder, train) for train in (True, False))
    upright = [half.data[:, None].swapaxes(2, 3).numpy() for half in (train, test)]
    return Parts(part_of(upright[0], train.targets - 1), test=part_of(upright[1], test.targets - 1))


def _read_svhn(folder: Path, _request: Request) -> Parts:
    from torchvision.datasets import SVHN

    train, test = (SVHN(folder, split=split) for split in ("train", "test"))
    return Parts(part_of(train.data, train.labels), test=part_of(test.data, test.labels))


def _fetch_svhn(folder: Path) -> None:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        SVHN(folder, split=split, download=True)


def _cifar10(folder: Path, train: bool, download: bool = False) -> Any:
    from torchvision.datasets import CIFAR10

    with warnings.catch_warnings():
        # NumPy 2.4.0 warns about the types of these arrays, which Python 2 has pickled.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        return CIFAR10(folder, train=train, download=download)


def _read_cifar10(folder: Path, _request: Request) -> Parts:
    """Read the images of CIFAR-10 and move the channels to the front.

    In torchvision, the channels are the last dimension.
    """
    train, test = (_cifar10(folder, train) for train in (True, False))
    images = [half.data.transpose(0, 3, 1, 2) for half in (train, test)]
    return Parts(part_of(images[0], train.targets), test=part_of(images[1], test.targets))


MNIST = mnist_like("mnist", "MNIST")
FASHION_MNIST = mnist_like("fashion-mnist", "FashionMNIST")
KMNIST = mnist_like("kmnist", "KMNIST")

EMNIST_LETTERS = FileSet(
    "emnist-letters",
    tuple(
        f"EMNIST/raw/emnist-letters-{split}-{stem}-ubyte"
        for split in ("train", "test")
        for stem in ("images-idx3", "labels-idx1")
    ),
    _read_emnist,
    lambda folder: _emnist(folder, train=True, download=True),
    archives=("EMNIST/raw/gzip.zip",),
)

SVHN = FileSet(
    "svhn",
    ("train_32x32.mat", "test_32x32.mat"),
    _read_svhn,
    _fetch_svhn,
    archives=("train_32x32.mat", "test_32x32.mat"),
)

CIFAR10 = FileSet(
    "cifar10",
    tuple(
        f"cifar-10-batches-py/{file}"
        for file in ("batches.meta", *(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
    ),
    _read_cifar10,
    lambda folder: _cifar10(folder, train=True, download=True),
    archives=("cifar-10-python.tar.gz",),
)
