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

#: Images up to this total size, as float32, are decoded once and kept in memory. Larger folders are decoded batch by batch.
KEEP_BYTES = 2**30

#: Above this number of images, a progress bar is shown while the images are checked.
LONG = 2000

#: Pillow's modes without colour.
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class ImageFiles:
    """Reader that decodes image files when their rows are read.

    Attributes:
        root: The folder of the images.
        names: Paths of the images relative to ``root``, shape ``(N,)``.
        data_shape: Shape ``(C, H, W)`` of every image, after scaling and cropping.
    """

    root: Path
    names: NDArray[np.str_]
    data_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all data, see :class:`pyro_vae.data.stored.Reader`."""
        return (len(self.names), *self.data_shape)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows as float32, see :class:`pyro_vae.data.stored.Reader`."""
        pixels = np.empty((len(rows), *self.data_shape), np.uint8)
        for k, row in enumerate(rows):
            pixels[k] = self.decode(int(row))
        return torch.from_numpy(pixels).float() / 255

    def decode(self, row: int) -> NDArray[np.uint8]:
        """Decode the image in one row.

        Returns:
            Pixels from 0 to 255, shape ``(C, H, W)``.

        Raises:
            ValueError: If the image is broken.
        """
        path = self.root / str(self.names[row])
        try:
            return decode(path, self.data_shape)
        except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, ...
            raise _broken_images([(path, _reason(error))], len(self.names)) from None


def decode(path: Path, data_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode an image file.

    The image is turned upright, scaled with antialiasing until it just covers the height and width, and cropped around the
    centre.

    Args:
        path: The image file.
        data_shape: Shape ``(C, H, W)`` of the result.

    Returns:
        Pixels from 0 to 255, shape ``(C, H, W)``.
    """
    channels, height, width = data_shape
    with Image.open(path) as file:
        image: Image.Image = file
        _check_mode(image)
        if image.mode.startswith("I"):  # 16-bit pixels; Pillow may read a 16-bit PNG with 32 bits
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _check_mode(image: Image.Image) -> None:
    """Refuse images with 32-bit pixels, which Pillow would clip at 255.

    Raises:
        ValueError: If the image has 32-bit pixels.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"32 bits a pixel, mode {image.mode}; save with 8 or 16 bits, or save all images as one .npy")


def open_folder(path: Path, request: Request) -> Parts:
    """Open the images in a folder and its subfolders.

    Subfolders ``train``, ``test`` and, optionally, ``val`` become the splits. Names of subfolders become labels if every image
    lies in a subfolder and at least two names differ.

    Returns:
        The splits; if there are no subfolders for splits, all images are training data.

    Raises:
        ValueError: If there are no images, an image is broken, or images differ in size and ``image_size`` is None.
    """
    if request.array is not None:
        raise ValueError(f"array: the folder {path} has no named arrays, got {request.array!r}; remove --array.")
    names = list(_image_files(path))
    if not names:
        raise ValueError(
            f"data set {path}: expected a folder with images ({', '.join(SUFFIXES)}), found no images; check the path."
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
            f"data set {path}: expected at least 3 images (for training, validation and test), got {len(images.names)}; add "
            "images."
        )
    size = " x ".join(map(str, data_shape))
    left_out = f"; left out {len(names) - len(images.names):,} broken ones" if len(images.names) < len(names) else ""
    description = f"{path.name}: {len(images.names):,} images as {size}, divided by 255; {key}{left_out}"
    return Parts(parts["train"], parts.get("validation"), parts.get("test"), description=description)


def _image_files(folder: Path) -> Iterator[str]:
    """Yield the paths of all image files below a folder, sorted."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link to a parent folder
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


class _Images:
    """The images of a folder, with a search for broken images.

    Attributes:
        names: Paths of the images; broken images are removed when they are found.
    """

    def __init__(self, root: Path, names: list[str], request: Request) -> None:
        self.root, self.names, self.request = root, names, request

    def _map(self, look: Callable[[int], T], description: str) -> list[T]:
        """Return ``look(row)`` for the row of each image; remove broken images.

        The calls of ``look`` run in threads.
        """
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

        C is the number of channels: 3 if at least one image has colour, else 1.
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
                f"{other[1]} ({second}), height x width; scale all images, for example by --image-size 64."
            )
        return (channels, *next(iter(sizes)))

    def reader(self, data_shape: tuple[int, int, int]) -> MemoryReader | ImageFiles:
        """Decode every image once, and return a reader of the images.

        If the pixels take at most ``KEEP_BYTES``, the reader keeps them in memory.
        """
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
    except Exception as error:  # a broken file raises OSError, SyntaxError, struct.error, ...
        return _Broken(_reason(error))


def _reason(error: Exception) -> str:
    text = first_line(error)
    return "not an image" if "cannot identify image file" in text else text


def _broken_images(broken: list[tuple[Path, str]], total: int) -> ValueError:
    path, reason = broken[0]
    others = f" (and {len(broken) - 1:,} more of {total:,})" if len(broken) > 1 else ""
    remedy = "repair or remove broken images, or pass --skip-broken" if len(broken) < total else "check the folder"
    return ValueError(f"image {path}{others}: expected a readable image, got a broken image ({reason}); {remedy}.")


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Read an image's mode and its size.

    The size is the height and width of the image when it is turned upright.
    """
    with Image.open(path) as image:
        _check_mode(image)
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 are turned by 90 degrees
        return image.mode, ((width, height) if sideways else (height, width))


def _splits(names: Sequence[str]) -> dict[str, Tensor]:
    """Assign each image to a split; return the rows of each split.

    The folders of the splits count only if every image lies in one and both train and test exist. Otherwise all rows are
    training data.
    """
    tops = [SPLITS.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in names]
    if not {"train", "test"} <= set(tops) or "" in tops:
        return {"train": torch.arange(len(names))}
    return {split: torch.tensor([k for k, top in enumerate(tops) if top == split]) for split in sorted(set(tops))}


def _labels(names: Sequence[str], below_split: bool) -> tuple[Tensor | None, str]:
    """Derive labels from the names of the subfolders, with a description.

    The labels are None if an image lies in no subfolder, or all images lie in the same subfolder.
    """
    folders = [name.split("/")[int(below_split) : -1] for name in names]
    if not all(folders) or len({folder[0] for folder in folders}) < 2:
        return None, "without labels"
    (labels,), key = encode_labels([np.array([folder[0] for folder in folders])])
    return labels, key
