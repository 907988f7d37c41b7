"""Sources of data: functions that take a ``Request`` and return ``Parts``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pyro_vae.data.stored import Stored


@dataclass(frozen=True)
class Request:
    """Options for loading data; a source ignores options it does not support.

    Attributes:
        folders: Folders in which named data sets are looked for, in this order; files have torchvision's layout.
        download: True to download missing files into the first folder.
        array: Name of the array to load from a file that has several arrays; or None.
        image_size: Height and width to which images are scaled and cropped; None to keep their size.
        skip_broken: True to skip images that cannot be read; if False, a broken image is an error.
        progress: True to show a progress bar on a terminal.
    """

    folders: tuple[Path, ...] = ()
    download: bool = True
    array: str | None = None
    image_size: tuple[int, int] | None = None
    skip_broken: bool = False
    progress: bool = False


class Part(NamedTuple):
    """One split of a source, before binarization.

    Attributes:
        x: The data, shape ``(N, *data_shape)``; pixels are in [0, 1] when read.
        y: Labels, shape ``(N,)``, int64; vectors, shape ``(N, C)``, float32; or None.
    """

    x: Stored
    y: Tensor | None = None

    def take(self, index: Tensor) -> Part:
        """Return a part that holds the rows ``index`` of this part."""
        return Part(self.x.take(index), None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Parts:
    """The splits of a source.

    Attributes:
        train: Training data, or all data.
        validation: Validation data; None if they have yet to be taken from ``train``.
        test: Test data; None if they have yet to be taken from ``train``.
        description: Description of the data, printed on the terminal; "" for a named data set.
        unit: True if all values are in [0, 1].
    """

    train: Part
    validation: Part | None = None
    test: Part | None = None
    description: str = ""
    unit: bool = True


#: A function that returns the splits of a data set. If files are missing, it raises a ``ValueError`` that names their folder.
Source = Callable[[Request], Parts]
