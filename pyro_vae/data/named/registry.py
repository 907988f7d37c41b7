"""The registry of named data sets."""

from __future__ import annotations

from pyro_vae.data.named.celeba import CELEBA
from pyro_vae.data.named.digits import digits
from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.named.omniglot import OMNIGLOT
from pyro_vae.data.named.shapes import shapes
from pyro_vae.data.named.torchvision_sets import CIFAR10, EMNIST_LETTERS, FASHION_MNIST, KMNIST, MNIST, SVHN
from pyro_vae.data.source import Source

#: Data sets by name. To add a data set, write its source in a new file and add a row here.
NAMED: dict[str, Source] = {
    "digits": digits,
    "shapes": shapes,
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
    "kmnist": KMNIST,
    "emnist-letters": EMNIST_LETTERS,
    "omniglot": OMNIGLOT,
    "svhn": SVHN,
    "cifar10": CIFAR10,
    "celeba": CELEBA,
}

#: The data sets that are read from downloaded files.
FILES = tuple(source for source in NAMED.values() if isinstance(source, FileSet))
