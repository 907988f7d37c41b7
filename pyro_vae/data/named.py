"""Data sets by name: digits from scikit-learn, shapes drawn here, the others in files that torchvision fetches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyro_vae.data.celeba import CELEBA
from pyro_vae.data.filesets import FileSet
from pyro_vae.data.omniglot import OMNIGLOT
from pyro_vae.data.parts import Part, Parts, Request
from pyro_vae.data.shapes import named as _shapes
from pyro_vae.data.stored import MemoryReader, Scaled, Stored
from pyro_vae.data.torchvision_sets import CIFAR10, EMNIST_LETTERS, SVHN, mnist_like


def _digits(request: Request) -> Parts:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    values = pixels.astype("uint8").reshape(-1, 1, 8, 8)
    whole = Part(Stored(MemoryReader(values, Scaled(16))), torch.from_numpy(labels).long())
    # The set has no test split of its own: one in ten, the same ones whatever the seed, so that runs can be compared.
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1797))
    return Parts(whole.take(order[180:]), test=whole.take(order[:180]))


#: Sets in files.
FILES: tuple[FileSet, ...] = (
    mnist_like("mnist", "MNIST"),
    mnist_like("fashion-mnist", "FashionMNIST"),
    mnist_like("kmnist", "KMNIST"),
    EMNIST_LETTERS,
    OMNIGLOT,
    SVHN,
    CIFAR10,
    CELEBA,
)

#: Data sets by name: what is asked -> what there is.
NAMED: dict[str, Callable[[Request], Parts]] = {
    "digits": _digits,
    "shapes": _shapes,
    **{files.name: files for files in FILES},
}
