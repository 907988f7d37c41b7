"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from pyro_vae.data.named.celeba import CELEBA
from pyro_vae.data.named.digits import digits
from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.named.omniglot import OMNIGLOT
from pyro_vae.data.named.shapes import named as _shapes
from pyro_vae.data.named.torchvision_sets import CIFAR10, EMNIST_LETTERS, SVHN, mnist_like
from pyro_vae.data.source import Parts, Request

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
    "digits": digits,
    "shapes": _shapes,
    **{files.name: files for files in FILES},
}
