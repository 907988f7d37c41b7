"""The function ``load``: find a data set, split it and binarize it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import torch

from pyro_vae.data.binarization import BINARIZE, binarize
from pyro_vae.data.dataset import Data, Split
from pyro_vae.data.labels import keep_labels
from pyro_vae.data.named.registry import NAMED
from pyro_vae.data.source import Part, Parts, Request
from pyro_vae.lookup import unknown

#: A data set up to this size, as float32, is kept in memory. If a data set is larger, only its splits up to a quarter of
#: this size are kept in memory; larger splits are read batch by batch.
IN_MEMORY_BYTES = 2**30

#: Largest side of an image, pixels.
MAX_SIDE = 8192


def data_folders(data_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Return the folders in which named data sets are looked for.

    Missing files are downloaded into the first folder.

    Args:
        data_dir: The only folder to look in. None for the environment variable ``PYRO_VAE_DATA``, if set, followed by the
            user's cache folder.
    """
    if data_dir is not None:
        return (Path(data_dir).expanduser(),)
    named, cache = os.environ.get("PYRO_VAE_DATA"), platformdirs.user_cache_path("pyro_vae", appauthor=False)
    return (Path(named).expanduser(), cache) if named else (cache,)


def load(
    name: str | Path = "digits",
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    array: str | None = None,
    image_size: Sequence[int] | None = None,
    skip_broken: bool = False,
    val_size: int | None = None,
    mode: str = "dynamic",
    seed: int = 0,
    labels: int | None = None,
    label_seed: int = 0,
    progress: bool = False,
) -> Data:
    """Load, split and binarize a data set, file or folder.

    A data set that has its own splits keeps them. Without a test split, a tenth of the data, chosen by ``seed``, becomes the
    test split (for ``digits``, the same tenth for every seed). Without a validation split, ``seed`` chooses validation data
    from the training data. In the modes ``"dynamic"`` and ``"static"``, validation and test images are binarized once, with
    ``seed``, so that two evaluations agree. A data set above 1 GiB as float32 is read batch by batch; only splits of at most
    256 MiB are kept in memory.

    Args:
        name: A name from ``NAMED``, or a path: a ``.npy``, ``.npz``, ``.csv`` or ``.parquet`` file, or a folder of images.
        data_dir: Folder with the files of named data sets, in torchvision's layout; None for :func:`data_folders`.
        download: True to download missing files.
        array: Name of the array in an ``.npz`` file; None if the file has only one array, or its arrays have the names of
            splits.
        image_size: Height and width of images, or one number for both; None to keep the size.
        skip_broken: True to skip broken images in a folder; if False, a broken image is an error.
        val_size: Number of training data set aside for validation. None for as many as the test split has, but at most a
            fifth of the training data.
        mode: The mode of binarization, see :func:`binarize`.
        seed: Seed of the splits and of the binarization.
        labels: Number of training labels to keep, the same number in each class; the other labels become -1 (unknown). None
            to keep all labels.
        label_seed: Seed for the choice of the labels that are kept.
        progress: True to show a progress bar while a large file is checked.

    Returns:
        The data set with its splits.

    Raises:
        ValueError: If ``name`` or ``mode`` is unknown, files are missing or unusable, or ``val_size`` leaves no training
            data.
    """
    if mode not in BINARIZE:
        raise unknown("binarization", mode, BINARIZE)
    folders = data_folders(data_dir)
    request = Request(folders, download, array, _height_and_width(image_size), skip_broken, progress)
    parts = _find(str(name), request)
    if mode in ("dynamic", "static") and not parts.unit:
        raise ValueError(
            f"binarize {mode}: needs values in [0, 1], but some are outside ({parts.description}); take --binarize none with "
            "--likelihood normal, or rescale the data."
        )
    generator = torch.Generator().manual_seed(seed)
    parts = _with_test(parts, generator)
    assert parts.test is not None
    size = _val_size(val_size, parts, str(name))
    order = torch.randperm(len(parts.train.x), generator=generator)
    validation, train = parts.validation, parts.train
    if validation is None and size:
        validation, train = train.take(order[:size]), train.take(order[size:])
    elif size == 0:
        validation = None
    total = sum(part.x.nbytes for part in (train, validation, parts.test) if part is not None)
    limit = IN_MEMORY_BYTES if total <= IN_MEMORY_BYTES else IN_MEMORY_BYTES // 4
    fixed = lambda part: _finished(part, mode, seed, generator, limit)  # noqa: E731
    test = fixed(parts.test)
    validation_split = None if validation is None else fixed(validation)
    train_split = fixed(train) if mode != "dynamic" else _finished(train, "none", seed, generator, limit)
    if labels is not None:
        train_split = train_split._replace(y=keep_labels(train_split.y, labels, label_seed))
    return Data(str(name), train_split, validation_split, test, mode == "dynamic", mode, parts.description)


def _height_and_width(image_size: Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None or len(image_size) == 0:
        return None
    if len(image_size) > 2 or min(image_size) < 1 or max(image_size) > MAX_SIDE:
        raise ValueError(
            f"image_size: expected one or two whole numbers from 1 to {MAX_SIDE:,} (height, width), got "
            f"{' '.join(map(str, image_size))}; pass, for example, 64 or 28 20."
        )
    return image_size[0], image_size[-1]


def _find(name: str, request: Request) -> Parts:
    """Return the splits of a named data set, file or folder."""
    if not name.strip():
        raise ValueError(f"data set: expected a name ({', '.join(NAMED)}) or a path, got nothing; pass --dataset NAME.")
    if request.skip_broken and not Path(name).expanduser().is_dir():
        raise ValueError(f"skip_broken: has no effect without a folder of images, got {name}; remove --skip-broken.")
    if name in NAMED:
        if request.array is not None:
            raise ValueError(f"array: data set {name} has no named arrays, got {request.array!r}; remove --array.")
        return _sized(NAMED[name](request), request.image_size)
    from pyro_vae.data.files.open import KINDS, is_path, open_path

    if is_path(name):
        return open_path(Path(name).expanduser(), request)
    raise ValueError(f"{unknown('data set', name, NAMED)} Or give the path of {KINDS}.")


def _sized(parts: Parts, size: tuple[int, int] | None) -> Parts:
    """Scale and crop all images to ``size``; None keeps their size."""
    if size is None:
        return parts
    sized = {
        split: part._replace(x=dataclasses.replace(part.x, image_size=size))
        for split in ("train", "validation", "test")
        if (part := getattr(parts, split)) is not None
    }
    return dataclasses.replace(parts, **sized)


def _with_test(parts: Parts, generator: torch.Generator) -> Parts:
    """Make a test split from a tenth of the data, if missing."""
    if parts.test is not None:
        return parts
    order = torch.randperm(len(parts.train.x), generator=generator)
    size = math.ceil(len(order) / 10)
    return dataclasses.replace(parts, train=parts.train.take(order[size:]), test=parts.train.take(order[:size]))


def _val_size(val_size: int | None, parts: Parts, name: str) -> int:
    assert parts.test is not None
    if parts.validation is not None:
        if val_size not in (None, 0, len(parts.validation.x)):
            raise ValueError(
                f"val_size: {name} has its own {len(parts.validation.x)} validation data, got {val_size}; remove --val-size, "
                "or pass 0 for no validation."
            )
        return len(parts.validation.x) if val_size is None else val_size
    size = min(len(parts.test.x), len(parts.train.x) // 5) if val_size is None else val_size
    if not 0 <= size < len(parts.train.x):
        raise ValueError(
            f"val_size: expected between 0 and {len(parts.train.x) - 1} for {name}, got {size}; leave some training data."
        )
    return size


def _finished(part: Part, mode: str, seed: int, generator: torch.Generator, limit: int) -> Split:
    """Binarize a split once; load the split into memory if small."""
    mode = "static" if mode == "dynamic" else mode
    if part.x.nbytes > limit:
        return Split(dataclasses.replace(part.x, mode=mode, seed=seed), part.y)
    return Split(binarize(part.x.in_memory(), mode, generator), part.y)
