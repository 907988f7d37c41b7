r"""Images of shapes made from known factors, for scores of disentanglement.

Five independent factors make an image: the shape, its scale, its rotation, and its position, x and y. An image determines
all its factors: no shape is symmetric under rotation, all have the same area and turn about their centres of mass, and
rotation covers half a turn. Four factors are intervals, so one latent unit can hold each of them.
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

#: The factors, in the order of their columns, and their numbers of values, evenly spaced and equally likely.
FACTORS = {"shape": 3, "scale": 6, "rotation": 16, "x": 16, "y": 16}

#: Number of different images.
COMBINATIONS = math.prod(FACTORS.values())

#: Smallest and largest square root of the area of a shape, as a share of the image's shorter side.
SCALES = (0.13, 0.26)

#: Range of the centre of mass, as a share of the width (x, from the left) and of the height (y, from the top).
PLACES = (0.3, 0.7)

#: Default height and width.
SIZE = (32, 32)

#: The splits of the named set, in the order in which they take their images.
SPLITS = {"train": 20_000, "validation": 2_000, "test": 4_000}

#: Seed of the named set.
SEED = 0

#: Signed distance of points (u, v), v upwards, from the edge of a shape: negative inside, and exact near the edge except at
#: corners. The area is 1 and the centre of mass 0.
Edge = Callable[[Tensor, Tensor], Tensor]


def draw_factors(num: int, seed: int = 0) -> Tensor:
    """Draw combinations of the values of all factors.

    No combination is repeated before all have come once, so images of different rows differ.

    Args:
        num: Number of combinations.
        seed: Seed of their order.

    Returns:
        Index of the value of each factor, from 0, shape ``(num, 5)``, int64; columns as in ``FACTORS``.

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
    r"""Draw the images of some factors.

    A pixel is the share of its area that the shape covers, :math:`\min(1, \max(0, \tfrac12 - d))`, where d is the distance
    of its centre from the edge, in pixels.

    Args:
        factors: As from :func:`draw_factors`, shape ``(N, 5)``, int64.
        size: Height and width of the images.

    Returns:
        Shape ``(N, 1, *size)``, float32, in [0, 1].

    Raises:
        ValueError: If the factors have another shape or are out of range, or the size is below 8 x 8.
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
    """Return the factors of the set ``shapes``, in the order of ``pv.data.load("shapes")``.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        Shape ``(N, 5)``, int64; columns as in ``FACTORS``.

    Raises:
        ValueError: If the split is unknown.
    """
    lookup("split", split, SPLITS)
    return draw_factors(sum(SPLITS.values()), SEED).split([*SPLITS.values()])[[*SPLITS].index(split)]


@dataclass(frozen=True)
class Drawn:
    """A reader that draws its rows, see :class:`pyro_vae.data.stored.Reader`.

    Attributes:
        factors: Shape ``(N, 5)``, int64.
        size: Height and width.
    """

    factors: Tensor
    size: tuple[int, int] = SIZE

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, 1, *size)``."""
        return (len(self.factors), 1, *self.size)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """See :class:`pyro_vae.data.stored.Reader`."""
        return render(self.factors[torch.from_numpy(rows)], self.size)


def shapes(request: Request) -> Parts:
    """Make the set ``shapes``, whose labels are the shapes.

    No two splits share an image.
    """
    size = SIZE if request.image_size is None else request.image_size
    _check(factors("test")[:1], size)
    train, validation, test = (Part(Stored(Drawn(v, size)), v[:, 0].clone()) for v in map(factors, SPLITS))
    return Parts(train, validation, test)


def _number(values: Tensor, name: str) -> Tensor:
    """Convert the values of a factor to numbers, shape ``(N,)``, float32."""
    ends = {"scale": SCALES, "rotation": (0.0, math.pi), "x": PLACES, "y": PLACES}[name]
    # Both ends of half a turn are included; they are two different rotations.
    return ends[0] + (ends[1] - ends[0]) * values.float() / (FACTORS[name] - 1)


def _check(factors: Tensor, size: Sequence[int]) -> None:
    if factors.dim() != 2 or factors.shape[1] != len(FACTORS) or factors.is_floating_point():
        raise ValueError(
            f"factors: expected whole numbers of shape (N, {len(FACTORS)}), for {', '.join(FACTORS)}, got "
            f"{tuple(factors.shape)} of {factors.dtype}; see draw_factors."
        )
    for (name, count), column in zip(FACTORS.items(), factors.unbind(1), strict=True):
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < count:
            raise ValueError(
                f"factors: expected {name} from 0 to {count - 1}, got {column.min()} to {column.max()}; see draw_factors."
            )
    if len(size) != 2 or min(size) < 8:
        raise ValueError(
            f"size: expected a height and a width of at least 8 pixels, got {' x '.join(map(str, size))}; take a larger one, "
            "in which the shapes can be told apart."
        )


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    """An isosceles triangle, its tip upwards."""
    height = 1.6
    half, slope = 1 / height, math.hypot(height, 1 / height)
    base = -height / 3
    return torch.maximum(base - v, (height * u.abs() + half * (v - 2 * height / 3)) / slope)


def _half_disc(u: Tensor, v: Tensor) -> Tensor:
    """Half a disc, its flat side below."""
    radius = math.sqrt(2 / math.pi)
    low = -4 * radius / (3 * math.pi)
    return torch.maximum(low - v, torch.hypot(u, v - low) - radius)


def _corner(u: Tensor, v: Tensor) -> Tensor:
    """An L of two arms of equal length, a third as wide."""
    width = 1 / math.sqrt(5)
    arm = 3 * width
    # Distance of its centre of mass from the outer corner, along either arm.
    centre = (arm * arm / 2 + (arm - width) * width / 2) * width
    right, up = u + centre, v + centre
    lying, standing = _box(right, up, arm, width), _box(right, up, width, arm)
    return torch.minimum(lying, standing)


def _box(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum((u - width / 2).abs() - width / 2, (v - height / 2).abs() - height / 2)


EDGES: dict[str, Edge] = {"triangle": _triangle, "half-disc": _half_disc, "corner": _corner}
