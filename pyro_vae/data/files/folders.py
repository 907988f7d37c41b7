"""Folders of images, in any format that Pillow reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from pyro_vae.data.labels import encode_labels
from pyro_vae.data.source import Part, Parts, Request
from pyro_vae.data.stored import MemoryReader, Scaled, Stored
from pyro_vae.errors import first_line

T = TypeVar("T")

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLITS |= {"test": "test", "testing": "test"}

#: Images up to this total size, as float32, are kept in memory once they have been decoded for checking.
KEEP_BYTES = 2**30

#: Above this number of images a bar is shown while they are checked.
LONG = 2000

#: Pillow's modes without colour.
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class ImageFiles:
    """Images in files, decoded when they are read.

    Attributes:
        root: The folder.
        names: Paths below it, shape ``(N,)``.
        data_shape: Shape ``(C, H, W)`` of every image, after scaling.
    """

    root: Path
    names: NDArray[np.str_]
    data_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`pyro_vae.data.stored.Reader`."""
        return (len(self.names), *self.data_shape)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """See :class:`pyro_vae.data.stored.Reader`."""
        pixels = np.empty((len(rows), *self.data_shape), np.uint8)
        for k, row in enumerate(rows):
            pixels[k] = self.decode(int(row))
        return torch.from_numpy(pixels).float() / 255

    def decode(self, row: int) -> NDArray[np.uint8]:
        """Read one image, shape ``(C, H, W)``.

        Raises:
            ValueError: If it is broken.
        """
        path = self.root / str(self.names[row])
        try:
            return decode(path, self.data_shape)
        except Exception as error:  # a broken file fails in any way: OSError, SyntaxError, struct.error, ...
            raise _broken_images([(path, _reason(error))], len(self.names)) from None


def decode(path: Path, data_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read an image.

    It is turned upright, scaled with antialiasing until it just covers the size, and cropped around the centre.

    Returns:
        Shape ``data_shape``.
    """
    channels, height, width = data_shape
    with Image.open(path) as file:
        image: Image.Image = file
        _check_mode(image)
        if image.mode.startswith("I"):  # 16 bits; Pillow may read a PNG of these as 32
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _check_mode(image: Image.Image) -> None:
    """Refuse pixels of 32 bits, which Pillow would clip at 255.

    Raises:
        ValueError: If the image has them.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"its pixels have 32 bits, mode {image.mode}; save it with 8 or 16, or all images as one .npy")


def open_folder(path: Path, request: Request) -> Parts:
    """Open the images in a folder and the folders below it.

    Folders ``train``, ``test`` and, if it exists, ``val`` are the splits. If all images lie in subfolders, and these have two
    or more names, the names are the labels.

    Raises:
        ValueError: If there are no images, one is broken, or their sizes differ and there is no ``image_size``.
    """
    if request.array is not None:
        raise ValueError(f"array: expected only with an .npz, got {request.array!r} for the folder {path}; drop it.")
    names = list(_image_files(path))
    if not names:
        raise ValueError(
            f"data set {path}: expected a folder with images ({', '.join(SUFFIXES)}), got one without any; check the path."
        )
    images = _Images(path.resolve(), names, request)
    data_shape = images.data_shape()
    reader = images.reader(data_shape)
    splits = _splits(images.names)
    labels, key = _labels(images.names, len(splits) > 1)
    parts = {
        split: Part(Stored(reader).take(rows), None if labels is None else labels[rows])
        for split, rows in splits.items()
    }
    if len(splits) == 1 and len(images.names) < 3:
        raise ValueError(
            f"data set {path}: expected at least 3 images, to train, validate and test with, got {len(images.names)}; add some."
        )
    size = " x ".join(map(str, data_shape))
    left_out = f"; left out {len(names) - len(images.names):,} broken ones" if len(images.names) < len(names) else ""
    description = f"{path.name}: {len(images.names):,} images as {size}, divided by 255; {key}{left_out}"
    return Parts(parts["train"], parts.get("validation"), parts.get("test"), description=description)


def _image_files(folder: Path) -> Iterator[str]:
    """Yield the paths of image files below a folder, sorted."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link to a folder above
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


class _Images:
    """The images of a folder, while broken ones are refused or dropped.

    Attributes:
        names: The images that are not broken, as far as checked.
    """

    def __init__(self, root: Path, names: list[str], request: Request) -> None:
        self.root, self.names, self.request = root, names, request

    def _map(self, look: Callable[[int], T], description: str) -> list[T]:
        """Return ``look(row)`` of each image, computed in threads; drop the broken ones."""
        hidden = None if self.request.progress and len(self.names) > LONG else True
        results: list[T | _Broken] = []
        rows = iter(range(len(self.names)))
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            tqdm(total=len(self.names), disable=hidden, leave=False, desc=description) as bar,
        ):
            while some := list(islice(rows, 512)):
                results += pool.map(lambda row: _attempt(look, row), some)
                bar.update(len(some))
        broken = [(self.root / n, r.reason) for n, r in zip(self.names, results, strict=True) if isinstance(r, _Broken)]
        if broken and (not self.request.skip_broken or len(broken) == len(self.names)):
            raise _broken_images(broken, len(self.names))
        good = [(name, r) for name, r in zip(self.names, results, strict=True) if not isinstance(r, _Broken)]
        self.names = [name for name, _ in good]
        return [result for _, result in good]

    def data_shape(self) -> tuple[int, int, int]:
        """Find the shape ``(C, H, W)`` of all images.

        C is 3 if any of them has colour.
        """
        headers = self._map(lambda row: _header(self.root / self.names[row]), "reading headers")
        channels = 1 if all(mode in GREY for mode, _ in headers) else 3
        if self.request.image_size is not None:
            return (channels, *self.request.image_size)
        sizes: dict[tuple[int, int], str] = {}
        for (_, size), name in zip(headers, self.names, strict=True):
            sizes.setdefault(size, name)
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ValueError(
                f"data set {self.root}: expected images of one size, got {one[0]} x {one[1]} ({first}) and {other[0]} x "
                f"{other[1]} ({second}), height x width; scale them by --image-size 64, say."
            )
        return (channels, *next(iter(sizes)))

    def reader(self, data_shape: tuple[int, int, int]) -> MemoryReader | ImageFiles:
        """Decode every image once, and keep the pixels if they are few."""
        files = ImageFiles(self.root, np.array(self.names), data_shape)
        keep = 4 * np.prod(files.shape, dtype=np.int64) <= KEEP_BYTES
        pixels = np.empty(files.shape if keep else (0,), np.uint8)

        def look(row: int) -> int:
            image = decode(self.root / str(files.names[row]), data_shape)
            if keep:
                pixels[row] = image
            return row

        good = np.array(self._map(look, "reading images"))
        if keep:
            return MemoryReader(pixels if len(good) == len(pixels) else pixels[good], Scaled(255))
        return ImageFiles(self.root, files.names[good], data_shape)


@dataclass(frozen=True)
class _Broken:
    reason: str


def _attempt(look: Callable[[int], T], row: int) -> T | _Broken:
    try:
        return look(row)
    except Exception as error:  # a broken file fails in any way: OSError, SyntaxError, struct.error, ...
        return _Broken(_reason(error))


def _reason(error: Exception) -> str:
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _broken_images(broken: list[tuple[Path, str]], total: int) -> ValueError:
    path, reason = broken[0]
    others = f" (and {len(broken) - 1:,} more of {total:,})" if len(broken) > 1 else ""
    remedy = "repair or remove it, or pass --skip-broken" if len(broken) < total else "check the folder"
    return ValueError(
        f"image {path}{others}: expected an image that can be read, got a broken one ({reason}); {remedy}."
    )


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Read the mode, and the height and width when turned upright."""
    with Image.open(path) as image:
        _check_mode(image)
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
        return image.mode, ((width, height) if sideways else (height, width))


def _splits(names: Sequence[str]) -> dict[str, Tensor]:
    """Return the rows of each split.

    Without folders train and test, all rows are training data.
    """
    tops = [SPLITS.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in names]
    if not {"train", "test"} <= set(tops) or "" in tops:
        return {"train": torch.arange(len(names))}
    return {split: torch.tensor([k for k, top in enumerate(tops) if top == split]) for split in sorted(set(tops))}


def _labels(names: Sequence[str], below_split: bool) -> tuple[Tensor | None, str]:
    """Return the folder of each image as a label, and a description.

    There are none if some image lies in no folder, or all lie in the same.
    """
    folders = [name.split("/")[int(below_split) : -1] for name in names]
    if not all(folders) or len({folder[0] for folder in folders}) < 2:
        return None, "without labels"
    (labels,), key = encode_labels([np.array([folder[0] for folder in folders])])
    return labels, key
