"""``load``: find a data set, split it and binarize it."""

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

#: A set up to this size, as float32, is held in memory. Of a larger one, only splits up to a quarter of this size are, and
#: the others are read a batch at a time.
IN_MEMORY_BYTES = 2**30

#: Largest side of an image, pixels.
MAX_SIDE = 8192


def data_folders(data_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Return the folders of named data sets.

    Missing files are downloaded into the first.

    Args:
        data_dir: The only folder; None for ``PYRO_VAE_DATA``, if set, and a cache folder of the user's.
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

    A set's own splits are kept. Without a test split, one datum in ten is set aside, by seed (``digits``: always the same
    ones). Validation data come from the training data, by seed. Under ``"dynamic"`` and ``"static"``, validation and test
    images are drawn once, by seed, so that two evaluations agree. A set above 1 GiB as float32 is not held in memory, except
    for splits up to a quarter of that, but read a batch at a time.

    Args:
        name: A name from ``NAMED``, or a path: a ``.npy``, ``.npz``, ``.csv`` or ``.parquet`` file, or a folder of images.
        data_dir: Folder of the files of named sets, in torchvision's layout; None for :func:`data_folders`.
        download: Whether to download missing files.
        array: Name of the array in an ``.npz``; None for the only one.
        image_size: Height and width of images, or one number for both; None to leave them as they are.
        skip_broken: Whether to leave out broken images of a folder; otherwise they are an error.
        val_size: Number of training data set aside for validation; None for as many as there are test data, at most a
            fifth.
        mode: A mode of binarization, see :func:`binarize`.
        seed: Seed of the split and of the binarization.
        labels: Number of training labels to keep, equally many of each class; the others become -1, unknown. None for all.
        label_seed: Seed of the choice of these labels.
        progress: Whether to show a bar while a large file is checked.

    Returns:
        The data with their splits.

    Raises:
        ValueError: If the name or mode is unknown, files are missing or unusable, or ``val_size`` leaves no training data.
    """
    if mode not in BINARIZE:
        raise unknown("binarization", mode, BINARIZE)
    folders = data_folders(data_dir)
    request = Request(folders, download, array, _height_and_width(image_size), skip_broken, progress)
    parts = _find(str(name), request)
    if mode in ("dynamic", "static") and not parts.unit:
        raise ValueError(
            f"binarize {mode}: expected values in [0, 1], got others ({parts.description}); take --binarize none with "
            "--likelihood normal, or rescale them."
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
            f"{' '.join(map(str, image_size))}; pass 64 or 28 20, say."
        )
    return image_size[0], image_size[-1]


def _find(name: str, request: Request) -> Parts:
    """Return the splits of a named set, file or folder."""
    if not name.strip():
        raise ValueError(f"data set: expected a name ({', '.join(NAMED)}) or a path, got nothing; name one.")
    if request.skip_broken and not Path(name).expanduser().is_dir():
        raise ValueError(f"skip_broken: expected only with a folder of images, got {name}; drop it.")
    if name in NAMED:
        if request.array is not None:
            raise ValueError(f"array: expected only with an .npz, got {request.array!r} for {name}; drop it.")
        return _sized(NAMED[name](request), request.image_size)
    from pyro_vae.data.files.open import KINDS, is_path, open_path

    if is_path(name):
        return open_path(Path(name).expanduser(), request)
    raise ValueError(f"{unknown('data set', name, NAMED)} Or give the path of {KINDS}.")


def _sized(parts: Parts, size: tuple[int, int] | None) -> Parts:
    """Return the same images, brought to a size unless it is None."""
    if size is None:
        return parts
    sized = {
        split: part._replace(x=dataclasses.replace(part.x, image_size=size))
        for split in ("train", "validation", "test")
        if (part := getattr(parts, split)) is not None
    }
    return dataclasses.replace(parts, **sized)


def _with_test(parts: Parts, generator: torch.Generator) -> Parts:
    """Set one datum in ten aside for the test, if needed."""
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
                f"val_size: expected 0 or nothing, since {name} brings {len(parts.validation.x)} validation data of its own, "
                f"got {val_size}; leave it out."
            )
        return len(parts.validation.x) if val_size is None else val_size
    size = min(len(parts.test.x), len(parts.train.x) // 5) if val_size is None else val_size
    if not 0 <= size < len(parts.train.x):
        raise ValueError(
            f"val_size: expected between 0 and {len(parts.train.x) - 1} for {name}, got {size}; leave data to train on."
        )
    return size


def _finished(part: Part, mode: str, seed: int, generator: torch.Generator, limit: int) -> Split:
    """Binarize a split once, in memory if it is small enough."""
    mode = "static" if mode == "dynamic" else mode
    if part.x.nbytes > limit:
        return Split(dataclasses.replace(part.x, mode=mode, seed=seed), part.y)
    return Split(binarize(part.x.in_memory(), mode, generator), part.y)
