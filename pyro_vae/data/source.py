"""Sources of data: a request in, the splits out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pyro_vae.data.stored import Stored


@dataclass(frozen=True)
class Request:
    """A request for data; each source reads the options that concern it.

    Attributes:
        folders: Folders of named data sets, in torchvision's layout, searched in this order.
        download: Whether to download missing files, into the first of these folders.
        array: Name of the array in a file that holds several.
        image_size: Height and width to which images are brought, or None.
        skip_broken: Whether to leave out images that cannot be read; otherwise they are an error.
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
        """Return the data at ``index``."""
        return Part(self.x.take(index), None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Parts:
    """The splits of a source.

    A split that is None is taken from ``train``.

    Attributes:
        train: Training data, or all data.
        validation: Validation data, where the source has its own.
        test: Test data, where the source has its own.
        description: Description of the data for the terminal; "" where the name says it all.
        unit: Whether all values are in [0, 1].
    """

    train: Part
    validation: Part | None = None
    test: Part | None = None
    description: str = ""
    unit: bool = True


#: A data set: returns its splits, or raises a ``ValueError`` that says where they should be.
Source = Callable[[Request], Parts]
