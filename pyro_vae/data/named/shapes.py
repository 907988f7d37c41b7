r"""Images of shapes with known factors, to measure disentanglement.

An image has five independent factors: the shape, its scale, its rotation, and the two coordinates x and y of its position.
An image determines all its factors. No shape is symmetric under rotation, shapes of one scale have the same area, each shape
turns about its centre of mass, and rotation covers half a turn. All factors except the shape are intervals, so one latent
unit can represent each of these four factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.data.source import Part, Parts, Request
from pyro_vae.data.stored import Stored
from pyro_vae.errors import check_count
from pyro_vae.lookup import lookup

#: Factors in the order of their columns, with the number of values of each factor. The values are equally spaced and equally
#: likely.
FACTORS = {"shape": 3, "scale": 6, "rotation": 16, "x": 16, "y": 16}

#: Number of different images.
COMBINATIONS = math.prod(FACTORS.values())

#: Smallest and largest scale: the square root of a shape's area, divided by the shorter side of the image.
SCALES = (0.13, 0.26)

#: Range of the centre of mass: x from the left, divided by the width; y from the top, divided by the height.
PLACES = (0.3, 0.7)

#: Default height and width.
SIZE = (32, 32)

#: Sizes of the splits of the data set ``shapes``, in the order in which the splits take images.
SPLITS = {"train": 20_000, "validation": 2_000, "test": 4_000}

#: Seed of the data set ``shapes``.
SEED = 0

#: A function that returns the signed distance of points (u, v), v upwards, from the edge of a shape. The distance is negative
#: inside the shape, and exact near the edge except at corners. The shape has area 1 and its centre of mass at (0, 0).
Edge = Callable[[Tensor, Tensor], Tensor]


def draw_factors(num: int, seed: int = 0) -> Tensor:
    """Draw combinations of factor values, without replacement.

    A combination has one value for each of the five factors. If ``num`` exceeds the number of combinations, the sequence of
    combinations is repeated.

    Args:
        num: Number of combinations.
        seed: Seed of the order of the combinations.

    Returns:
        Indices of the factor values, counted from 0, shape ``(num, 5)``, int64; the columns are the factors in ``FACTORS``.

    Raises:
        ValueError: If ``num`` is below 1.
    """
    check_count("num", num)
    order = torch.randperm(COMBINATIONS, generator=torch.Generator().manual_seed(seed))
    rest = order[torch.arange(num) % COMBINATIONS]
    columns = []
    for count in reversed(FACTORS.values()):
        columns.append(rest % count)
        rest = rest // count
    return torch.stack(columns[::-1], 1)


def render(factors: Tensor, size: Sequence[int] = SIZE) -> Tensor:
    r"""Render the images that have the given factor values.

    The value of a pixel approximates the share of its area that the shape covers, :math:`\min(1, \max(0, \tfrac12 - d))`. Here
    d is the signed distance of the pixel's centre from the edge of the shape, in pixels, negative inside.

    Args:
        factors: Indices of the factor values, as :func:`draw_factors` returns them, shape ``(N, 5)``, int64.
        size: Height and width of the images.

    Returns:
        Images, shape ``(N, 1, *size)``, float32, in [0, 1].

    Raises:
        ValueError: If ``factors`` has another shape or type, an index is out of range, or ``size`` is below 8 x 8.
    """
    _check(factors, size)
    height, width = size
    shape, *others = factors.unbind(1)
    scale, rotation, x, y = (_number(values, name) for values, name in zip(others, [*FACTORS][1:], strict=True))
    side = min(height, width) * scale
    across = torch.arange(width) + 0.5 - (x * width)[:, None, None]
    down = torch.arange(height)[:, None] + 0.5 - (y * height)[:, None, None]
    cos, sin = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    # Rotated back: v points up, and a positive rotation is counterclockwise.
    u, v = (across * cos - down * sin) / side[:, None, None], (-across * sin - down * cos) / side[:, None, None]
    distance = torch.empty_like(u)
    for k, edge in enumerate(EDGES.values()):
        distance[shape == k] = edge(u[shape == k], v[shape == k])
    return (0.5 - side[:, None, None] * distance).clamp(0, 1)[:, None]


def factors(split: str = "test") -> Tensor:
    """Return the factor values of one split of the data set ``shapes``.

    The rows have the order of the images from ``pv.data.load("shapes")``.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        Indices of the factor values, counted from 0, shape ``(N, 5)``, int64; the columns are the factors in ``FACTORS``.

    Raises:
        ValueError: If ``split`` is unknown.
    """
    lookup("split", split, SPLITS)
    return draw_factors(sum(SPLITS.values()), SEED).split([*SPLITS.values()])[[*SPLITS].index(split)]


@dataclass(frozen=True)
class Drawn:
    """A reader that renders images, see :class:`pyro_vae.data.stored.Reader`.

    Attributes:
        factors: Indices of each image's factor values, as :func:`draw_factors` returns them, shape ``(N, 5)``, int64.
        size: Height and width of the images.
    """

    factors: Tensor
    size: tuple[int, int] = SIZE

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images, ``(N, 1, *size)``."""
        return (len(self.factors), 1, *self.size)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Read rows as float32, see :class:`pyro_vae.data.stored.Reader`."""
        return render(self.factors[torch.from_numpy(rows)], self.size)


def shapes(request: Request) -> Parts:
    """Make the data set ``shapes``; an image's label is its shape.

    No two splits share an image.
    """
    size = SIZE if request.image_size is None else request.image_size
    _check(factors("test")[:1], size)
    train, validation, test = (Part(Stored(Drawn(v, size)), v[:, 0].clone()) for v in map(factors, SPLITS))
    return Parts(train, validation, test)


def _number(values: Tensor, name: str) -> Tensor:
    """Convert the value indices of a factor to values, float32, shape ``(N,)``."""
    ends = {"scale": SCALES, "rotation": (0.0, math.pi), "x": PLACES, "y": PLACES}[name]
    # Rotations by 0 and by half a turn are both included, since no shape is symmetric under half a turn.
    return ends[0] + (ends[1] - ends[0]) * values.float() / (FACTORS[name] - 1)


def _check(factors: Tensor, size: Sequence[int]) -> None:
    if factors.dim() != 2 or factors.shape[1] != len(FACTORS) or factors.is_floating_point():
        raise ValueError(
            f"factors: expected whole numbers of shape (N, {len(FACTORS)}) ({', '.join(FACTORS)}), got shape "
            f"{tuple(factors.shape)} of {factors.dtype}; see draw_factors."
        )
    for (name, count), column in zip(FACTORS.items(), factors.unbind(1), strict=True):
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < count:
            raise ValueError(
                f"factors: expected {name} from 0 to {count - 1}, got {column.min()} to {column.max()}; see draw_factors."
            )
    if len(size) != 2 or min(size) < 8:
        raise ValueError(
            f"size: expected a height and a width of at least 8 pixels, got {' x '.join(map(str, size))}; choose a larger "
            "size, at which shapes are distinct."
        )


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance from an isosceles triangle with its tip at the top."""
    height = 1.6
    half, slope = 1 / height, math.hypot(height, 1 / height)
    base = -height / 3
    return torch.maximum(base - v, (height * u.abs() + half * (v - 2 * height / 3)) / slope)


def _half_disc(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance from a half disc with its flat side down."""
    radius = math.sqrt(2 / math.pi)
    low = -4 * radius / (3 * math.pi)
    return torch.maximum(low - v, torch.hypot(u, v - low) - radius)


def _corner(u: Tensor, v: Tensor) -> Tensor:
    """Signed distance from an L with two arms of equal length."""
    width = 1 / math.sqrt(5)  # of an arm; a third of its length
    arm = 3 * width
    # Distance of the L's centre of mass from the outer corner, along either arm.
    centre = (arm * arm / 2 + (arm - width) * width / 2) * width
    right, up = u + centre, v + centre
    lying, standing = _box(right, up, arm, width), _box(right, up, width, arm)
    return torch.minimum(lying, standing)


def _box(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum((u - width / 2).abs() - width / 2, (v - height / 2).abs() - height / 2)


EDGES: dict[str, Edge] = {"triangle": _triangle, "half-disc": _half_disc, "corner": _corner}
