"""CelebA: 202,599 photographs of faces, decoded batch by batch."""

from __future__ import annotations

import importlib.util
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pyro_vae.data.named.fileset import TIMEOUT, FileSet
from pyro_vae.data.source import Part, Parts, Request
from pyro_vae.data.stored import Stored

PHOTOGRAPHS, ZIPPED = "celeba/img_align_celeba", "celeba/img_align_celeba.zip"
PARTITION = "celeba/list_eval_partition.txt"
ARCHIVES = (ZIPPED, PARTITION)

#: Width and height of a photograph.
WHOLE = (178, 218)

#: Side of the central square to which photographs are cropped.
CROP = 148

#: Default height and width.
SIZE = (64, 64)


@dataclass(frozen=True)
class Faces:
    """Reader of photographs, cropped to the central square.

    Attributes:
        folder: Folder of the photographs.
        names: File names of the photographs, shape ``(N,)``.
    """

    folder: Path
    names: NDArray[np.bytes_]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all data, see :class:`pyro_vae.data.stored.Reader`."""
        return (len(self.names), 3, CROP, CROP)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows as float32, see :class:`pyro_vae.data.stored.Reader`.

        Raises:
            ValueError: If a photograph cannot be read.
        """
        pixels = np.empty((len(rows), CROP, CROP, 3), np.uint8)
        for k, name in enumerate(self.names[rows]):
            pixels[k] = _decode(self.folder / name.decode())
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def _decode(path: Path) -> NDArray[np.uint8]:
    left, top = ((side - CROP) // 2 for side in WHOLE)
    try:
        with Image.open(path) as image:
            if image.size != WHOLE:
                raise ValueError(f"{image.width} x {image.height} instead of {WHOLE[0]} x {WHOLE[1]} pixels")
            return np.asarray(image.convert("RGB").crop((left, top, left + CROP, top + CROP)))
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, ...
        raise ValueError(
            f"celeba: photograph {path} cannot be read ({error}); extract img_align_celeba.zip again."
        ) from None


def _read(folder: Path, _request: Request) -> Parts:
    """Read the splits from ``list_eval_partition.txt``.

    Each line has the form ``000001.jpg 0``, with 0 for train, 1 for validation and 2 for test.
    """
    images, entries = folder / PHOTOGRAPHS, (folder / PARTITION).read_text().split()
    names, numbers = np.array(entries[::2], dtype=bytes), np.array(entries[1::2])
    if len(names) != len(numbers) or set(numbers) != {"0", "1", "2"}:
        raise ValueError(f"a line of {Path(PARTITION).name} is not FILE 0, FILE 1 or FILE 2")
    missing = set(names.tolist()) - {os.fsencode(name) for name in os.listdir(images)}
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(names):,} files are missing in {images}, such as {min(missing).decode()}"
        )
    train, validation, test = (Part(Stored(Faces(images, names[numbers == k]), image_size=SIZE)) for k in "012")
    return Parts(train, validation, test)


def _fetch(folder: Path) -> None:
    """Download the photographs and the list of splits.

    Torchvision's ``CelebA`` class would download four more files from Google Drive, which limits downloads.
    """
    from torchvision.datasets import CelebA
    from torchvision.datasets.utils import check_integrity, download_file_from_google_drive, extract_archive

    for number, md5, name in CelebA.file_list:
        if f"celeba/{name}" in ARCHIVES and not check_integrity(folder / "celeba" / name, md5):
            _reach_google_drive()
            download_file_from_google_drive(number, folder / "celeba", name, md5)
    extract_archive(folder / ZIPPED)


def _reach_google_drive() -> None:
    if importlib.util.find_spec("gdown") is None:
        raise ModuleNotFoundError("the download needs gdown: pip install 'pyro-vae[celeba]'")
    try:  # gdown has no timeout
        urllib.request.urlopen("https://drive.google.com", timeout=TIMEOUT).close()
    except urllib.error.HTTPError as answer:
        answer.close()


CELEBA = FileSet("celeba", (PARTITION, PHOTOGRAPHS), _read, _fetch, ARCHIVES)
