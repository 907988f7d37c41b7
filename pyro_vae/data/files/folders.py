"""A folder of images, of any formats that Pillow reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLITS |= {"test": "test", "testing": "test"}

#: Images up to this size in all, as bytes, are kept in memory when they have been decoded once, for checking.
KEEP_BYTES = 2**30

#: Above this many images a bar is shown while they are checked.
LONG = 2000

#: Modes of Pillow without colour.
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class ImageFiles:
    """Images in files, decoded when they are read.

    Attributes:
        root: The folder.
        names: Their paths below it, shape ``(N,)``.
        data_shape: ``(C, H, W)`` to which each is brought.
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
        """One image, shape ``(C, H, W)``.

        Raises:
            ValueError: If it cannot be read.
        """
        path = self.root / str(self.names[row])
        try:
            return decode(path, self.data_shape)
        except Exception as error:  # a broken file fails in any way: OSError, SyntaxError, struct.error, ...
            raise ValueError(_sentence([(path, _reason(error))], len(self.names))) from None


def decode(path: Path, data_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read an image, turned upright, scaled with antialiasing until it just covers the size, cropped around the centre."""
    channels, height, width = data_shape
    with Image.open(path) as file:
        image: Image.Image = file
        _check_mode(image)
        if image.mode.startswith("I"):  # 16 bits; a PNG of them may come as 32
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _check_mode(image: Image.Image) -> None:
    """Refuse pixels of 32 bits, which Pillow would cut off at 255.

    Raises:
        ValueError: If the image has such.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"its pixels have 32 bits, mode {image.mode}; save it with 8 or 16, or all images as one .npy")


def open_folder(path: Path, request: Request) -> Parts:
    """The images in a folder and the folders below it.

    Folders ``train``, ``test`` and, if it is there, ``val`` are the splits. Where all images lie in folders of two or
    more names, these are the labels.

    Raises:
        ValueError: If there are no images, one is broken, or they differ in size and no ``image_size`` is asked.
    """
    if request.array is not None:
        raise ValueError(f"array: expected only with an .npz, got {request.array!r} for the folder {path}; drop it.")
    names = list(_find(path))
    if not names:
        raise ValueError(
            f"data set {path}: expected a folder with images ({', '.join(SUFFIXES)}), got one without any; check the path."
        )
    found = _Found(path.resolve(), names, request)
    data_shape = found.data_shape()
    reader = found.reader(data_shape)
    splits = _splits(found.names)
    labels, key = _labels(found.names, len(splits) > 1)
    parts: dict[str, Any] = {
        split: Part(Stored(reader).take(rows), None if labels is None else labels[rows])
        for split, rows in splits.items()
    }
    if len(splits) == 1 and len(found.names) < 3:
        raise ValueError(
            f"data set {path}: expected at least 3 images, to train, validate and test with, got {len(found.names)}; add some."
        )
    size = " x ".join(map(str, data_shape))
    left_out = f"; left out {len(names) - len(found.names):,} broken ones" if len(found.names) < len(names) else ""
    return Parts(**parts, words=f"{path.name}: {len(found.names):,} images as {size}, divided by 255; {key}{left_out}")


def _find(folder: Path) -> Iterator[str]:
    """Paths of image files below a folder, sorted, hidden ones left out."""
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


class _Found:
    """Images of a folder while they are looked at: those that turn out to be broken are refused, or left out.

    Attributes:
        names: The good ones so far.
    """

    def __init__(self, root: Path, names: list[str], request: Request) -> None:
        self.root, self.names, self.request = root, names, request

    def _map(self, look: Callable[[int], Any], description: str) -> list[Any]:
        """Look at each image, in threads; drop those that are broken. What ``look`` gave for the others."""
        hidden = None if self.request.progress and len(self.names) > LONG else True
        results: list[Any] = []
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
            raise ValueError(_sentence(broken, len(self.names)))
        good = [row for row, result in enumerate(results) if not isinstance(result, _Broken)]
        self.names = [self.names[row] for row in good]
        return [results[row] for row in good]

    def data_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``: three channels if any image has colour, the size asked for or that of all."""
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
                f"{other[1]} ({second}), height x width; bring them to one by --image-size, such as --image-size 64."
            )
        return (channels, *next(iter(sizes)))

    def reader(self, data_shape: tuple[int, int, int]) -> MemoryReader | ImageFiles:
        """Decode every image once: kept in memory if they are small enough, else only looked at."""
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


def _attempt(look: Callable[[int], Any], row: int) -> Any:
    try:
        return look(row)
    except Exception as error:  # a broken file fails in any way: OSError, SyntaxError, struct.error, ...
        return _Broken(_reason(error))


def _reason(error: Exception) -> str:
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _sentence(broken: list[tuple[Path, str]], total: int) -> str:
    path, reason = broken[0]
    others = f" (and {len(broken) - 1:,} more of {total:,})" if len(broken) > 1 else ""
    mend = "mend or remove it, or leave such images out by --skip-broken" if len(broken) < total else "check the folder"
    return f"image {path}{others}: expected an image that can be read, got a broken one ({reason}); {mend}."


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode of an image, and its height and width when it is turned upright; no pixel is decoded."""
    with Image.open(path) as image:
        _check_mode(image)
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
        return image.mode, ((width, height) if sideways else (height, width))


def _splits(names: Sequence[str]) -> dict[str, Tensor]:
    """Rows of each split: those of folders of these names where train and test are there, else all as train."""
    tops = [SPLITS.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in names]
    if not {"train", "test"} <= set(tops) or "" in tops:
        return {"train": torch.arange(len(names))}
    return {split: torch.tensor([k for k, top in enumerate(tops) if top == split]) for split in sorted(set(tops))}


def _labels(names: Sequence[str], below_split: bool) -> tuple[Tensor | None, str]:
    """The folder of each image as a label, with its key in words; None where some lie in none or all in the same."""
    folders = [name.split("/")[int(below_split) : -1] for name in names]
    if not all(folders) or len({folder[0] for folder in folders}) < 2:
        return None, "without labels"
    (labels,), key = encode_labels([np.array([folder[0] for folder in folders])])
    return labels, key
