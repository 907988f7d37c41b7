"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.named.torchvision_sets import part_of
from pyro_vae.data.source import Parts, Request
from pyro_vae.data.stored import fit_to

#: Archives by name, with the number of characters in each.
HALVES = {"images_background": 964, "images_evaluation": 659}

#: Number of people who drew each character.
DRAWINGS = 20

#: Default height and width; the images in the archives are 105 x 105.
SIZE = (28, 28)


def _read(folder: Path, request: Request) -> Parts:
    """Read the splits: background images for training, evaluation images for test.

    The two splits share no alphabet, and therefore no label.
    """
    first, splits = 0, []
    for half, characters in HALVES.items():
        archive = folder / "omniglot-py" / f"{half}.zip"
        images, character = _drawings(archive, DRAWINGS * characters, request.image_size or SIZE)
        splits.append(part_of(images, first + character))
        first += characters
    return Parts(splits[0], test=splits[1])


def _drawings(archive: Path, count: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the images of an archive, in the order of their paths.

    The archives are not extracted, since they hold 32,460 small files.

    Returns:
        Images, shape ``(N, 1, *size)``, uint8, with 255 for ink and 0 for paper; and the number of each image's character,
        counted from 0, shape ``(N,)``.
    """
    with zipfile.ZipFile(archive) as zipped:
        names = sorted(n for n in zipped.namelist() if n.startswith(f"{archive.stem}/") and n.endswith(".png"))
        if len(names) != count:
            raise ValueError(f"{len(names)} images instead of {count} in {archive.name}")
        images = np.empty((count, 1, *size), np.uint8)
        for start in range(0, count, 1000):
            some = names[start : start + 1000]
            paper = np.stack([_decode(zipped.read(name)) for name in some])[:, None]
            ink = fit_to(1 - torch.from_numpy(paper) / 255, size)
            images[start : start + len(some)] = (255 * ink).round().byte().numpy()
    return images, np.unique([name.rsplit("/", 1)[0] for name in names], return_inverse=True)[1]


def _decode(content: bytes) -> NDArray[np.float32]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L"), dtype=np.float32)


def _fetch(folder: Path) -> None:
    from torchvision.datasets import Omniglot
    from torchvision.datasets.utils import download_url

    for half in HALVES:
        url = f"{Omniglot.download_url_prefix}/{half}.zip"
        download_url(url, folder / "omniglot-py", md5=Omniglot.zips_md5[half])


_ZIPS = tuple(f"omniglot-py/{half}.zip" for half in HALVES)

OMNIGLOT = FileSet("omniglot", _ZIPS, _read, _fetch, archives=_ZIPS)
