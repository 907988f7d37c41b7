"""What a source of data gives: its splits, as they are stored, and words about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pyro_vae.data.stored import Stored


@dataclass(frozen=True)
class Request:
    """What is asked of a source.

    Attributes:
        folders: Where named data sets are looked for, in this order, in torchvision's layout.
        download: Whether missing files may be fetched, into the first of these folders.
        array: Name of the array in a file that holds several.
        image_size: Height and width to which images shall be brought, or None.
        skip_broken: Whether images that cannot be read are left out instead of refused.
        progress: Whether to show a bar on a terminal.
    """

    folders: tuple[Path, ...] = ()
    download: bool = True
    array: str | None = None
    image_size: tuple[int, int] | None = None
    skip_broken: bool = False
    progress: bool = False


class Part(NamedTuple):
    """One split.

    Attributes:
        x: The data, in the units of the model (pixels in [0, 1]) when read.
        y: Labels, shape ``(N,)``, int64, or vectors, shape ``(N, C)``, float32, or None.
    """

    x: Stored
    y: Tensor | None = None

    def take(self, index: Tensor) -> Part:
        """The data at ``index``."""
        return Part(self.x.take(index), None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Parts:
    """The splits that a source brings; those that are None are taken from ``train``.

    Attributes:
        train: Training data, or everything there is.
        validation: Validation data, where the source has its own.
        test: Test data, where the source has its own.
        words: What was found, for the terminal; "" where the name says it all.
        unit: Whether all values are in [0, 1].
    """

    train: Part
    validation: Part | None = None
    test: Part | None = None
    words: str = ""
    unit: bool = True
