"""Data sets by name, their splits, and what a run is trained and tested on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.batches import BINARIZE, binarize
from pyro_vae.lookup import lookup, unknown


class Split(NamedTuple):
    """Images with their labels.

    Attributes:
        x: Pixels in [0, 1], shape ``(N, C, H, W)``, float32.
        y: Labels, shape ``(N,)``, int64, or None.
    """

    x: Tensor
    y: Tensor | None = None

    def take(self, index: Tensor) -> Split:
        """The images at ``index``."""
        return Split(self.x[index], None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Data:
    """What a run is trained, selected and tested on.

    Attributes:
        name: Name of the data set.
        train: Training images; grey where they are binarized afresh for every batch.
        validation: Images by which the best epoch is chosen, binarized, or None.
        test: Test images, binarized.
        redraw: Whether training batches are binarized when they are drawn.
        binarize: The mode of binarization.
    """

    name: str
    train: Split
    validation: Split | None = None
    test: Split | None = None
    redraw: bool = False
    binarize: str = "none"

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    @property
    def sizes(self) -> str:
        """The sizes of the splits in words."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return ", ".join(f"{len(s.x):,} {name}" for name, s in parts.items() if s is not None)

    def to(self, device: torch.device) -> Data:
        """The same data with their pixels on a device."""
        moved = {
            k: s._replace(x=s.x.to(device))
            for k in ("train", "validation", "test")
            if (s := getattr(self, k)) is not None
        }
        return dataclasses.replace(self, **moved)


def default_data_dir() -> Path:
    """``PYRO_VAE_DATA`` where it is set, else a cache folder of the user's."""
    return Path(os.environ.get("PYRO_VAE_DATA") or Path.home() / ".cache" / "pyro_vae")


def _digits(data_dir: Path, download: bool) -> tuple[Split, Split]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    whole = Split(x, torch.from_numpy(labels).long())
    # The set has no test split of its own: one in ten, the same ones whatever the seed, so that runs can be compared.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1797))
    return whole.take(order[180:]), whole.take(order[:180])


def _mnist(data_dir: Path, download: bool) -> tuple[Split, Split]:
    from torchvision.datasets import MNIST

    splits = []
    for train in (True, False):
        try:
            found = MNIST(str(data_dir), train=train, download=download)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:  # missing, empty or damaged
            raise ValueError(
                f"mnist: expected its files in {data_dir / 'MNIST' / 'raw'}, got none that can be read ({error}); give the "
                "folder that holds MNIST by --data-dir, allow --download, or take --dataset digits, which needs no files."
            ) from None
        splits.append(Split(found.data[:, None].float() / 255, found.targets.long()))
    return splits[0], splits[1]


#: Data sets by name: (folder, may download) -> (training images, test images).
SOURCES: dict[str, Callable[[Path, bool], tuple[Split, Split]]] = {"digits": _digits, "mnist": _mnist}


def load(
    name: str = "digits",
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    val_size: int | None = None,
    mode: str = "dynamic",
    seed: int = 0,
) -> Data:
    """Load a data set, split it and binarize it.

    The test images are the set's own; ``digits`` has none, so one in ten is set aside, the same for every seed.
    Validation images are taken from the training images by seed. Under ``"dynamic"`` and ``"static"`` validation and
    test images are drawn once, by seed, so that two evaluations agree.

    Args:
        name: A name from ``SOURCES``.
        data_dir: Folder with (or for) the files, in torchvision's layout; None: :func:`default_data_dir`.
        download: Whether missing files may be fetched.
        val_size: How many training images to set aside for validation; None: as many as there are test images.
        mode: A mode of binarization, see :func:`binarize`.
        seed: Seed of the split and of the binarization.

    Raises:
        ValueError: If the name or mode is unknown, files are missing, or ``val_size`` leaves no training images.
    """
    source = lookup("data set", name, SOURCES)
    if mode not in BINARIZE:
        raise unknown("binarization", mode, BINARIZE)
    train, test = source(default_data_dir() if data_dir is None else Path(data_dir), download)
    size = len(test.x) if val_size is None else val_size
    if not 0 <= size < len(train.x):
        raise ValueError(f"val_size: expected between 0 and {len(train.x) - 1} for {name}, got {size}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train.x), generator=generator)
    validation = train.take(order[:size]) if size else None
    train = train.take(order[size:]) if size else train
    fixed = lambda s: s._replace(x=binarize(s.x, mode, generator))  # noqa: E731
    test = fixed(test)
    validation = fixed(validation) if validation is not None else None
    if mode != "dynamic":
        train = fixed(train)
    return Data(name, train, validation, test, redraw=mode == "dynamic", binarize=mode)
