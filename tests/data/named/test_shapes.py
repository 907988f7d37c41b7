"""Shapes: area, place and direction of every image against the factors that made it."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from pyro_vae.data import load
from pyro_vae.data.__main__ import main
from pyro_vae.data.named import shapes

SIDE = 64


def every(side=(SIDE, SIDE), scale=5):
    """One image of each shape and rotation, at each of four places; with its factors."""
    rows = torch.cartesian_prod(*(torch.arange(n) for n in (3, 16, 2, 2)))
    factors = torch.stack(
        [rows[:, 0], torch.full((len(rows),), scale), rows[:, 1], 15 * rows[:, 2], 15 * rows[:, 3]], 1
    )
    return shapes.render(factors, side).double()[:, 0], factors


def moments(images):
    """Mass, centre and central second moments (uu, uv, vv; v upwards), in pixels."""
    down, across = (torch.arange(n) + 0.5 for n in images.shape[1:])
    mass = images.sum((1, 2))
    x, y = ((images * at).sum((1, 2)) / mass for at in (across, down[:, None]))
    u, v = across - x[:, None, None], y[:, None, None] - down[:, None]
    second = [(images * part).sum((1, 2)) / mass for part in (u * u, u * v, v * v)]
    return mass, x, y, torch.stack(second, 1)


@pytest.mark.parametrize("scale", [0, 5])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_area_and_centre_are_those_of_the_factors(size, scale):
    images, factors = every(size, scale)
    mass, x, y, _ = moments(images)
    side = 64 * (0.13 + 0.13 * scale / 5)
    assert (mass - side**2).abs().max() < 0.02 * side**2
    places = 0.3 + 0.4 * factors[:, 3:] / 15
    assert (x - places[:, 0] * size[1]).abs().max() < 0.1
    assert (y - places[:, 1] * size[0]).abs().max() < 0.1


def test_the_long_axis_turns_with_the_factor():
    """Of a triangle it points to the tip, of a half-disc along the flat, of a corner across its diagonal."""
    images, factors = every()
    uu, uv, vv = moments(images)[3].unbind(1)
    axis = 0.5 * torch.atan2(2 * uv, uu - vv)
    start = torch.tensor([math.pi / 2, 0.0, -math.pi / 4])[factors[:, 0]]
    gap = (axis - start - math.pi * factors[:, 2] / 15 + math.pi / 2) % math.pi - math.pi / 2
    assert gap.abs().max() < 0.03
    # The long axis has no direction, but all of them have their tail upwards, and after half a turn downwards.
    down = torch.arange(SIDE)[:, None] + 0.5
    tail = (images * (moments(images)[2][:, None, None] - down) ** 3).sum((1, 2)) / images.sum((1, 2))
    half = lambda k: factors[:, 2] == k  # noqa: E731
    assert (tail[half(0)] > 1).all()
    assert (tail[half(15)] < -1).all()
    there = images[half(15)].flip(1, 2).reshape(3, 4, SIDE, SIDE).flip(1)
    assert torch.allclose(images[half(0)].reshape(3, 4, SIDE, SIDE), there, atol=1e-3)


def test_a_pixel_is_the_share_that_is_covered():
    fine, _ = every((8 * 32, 8 * 32))
    share = (fine > 0.5).double().unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))
    images, _ = every((32, 32))
    error = (images - share).abs()
    assert error.max() < 0.4  # at corners
    assert error[(share > 0) & (share < 1)].mean() < 0.05
    assert set(images.unique().clamp(0, 1).tolist()) == set(images.unique().tolist())


def test_the_largest_shape_is_whole_at_every_place():
    for side in (32, 64, 128):
        binary = every((side, side))[0] > 0.5
        assert not binary[:, [0, -1]].any()
        assert not binary[:, :, [0, -1]].any()


def test_the_seed_decides_and_nothing_comes_twice_before_its_turn():
    assert torch.equal(shapes.draw_factors(100, 3), shapes.draw_factors(1000, 3)[:100])
    assert not torch.equal(shapes.draw_factors(100, 3), shapes.draw_factors(100, 4))
    total = math.prod(shapes.FACTORS.values())
    assert total == shapes.COMBINATIONS == 73_728
    more = shapes.draw_factors(total + 10)
    assert torch.equal(more[total:], more[:10])
    counts = more[:total].unique(dim=0, return_counts=True)[1]
    assert counts.tolist() == [1] * total
    assert more.max(0).values.tolist() == [n - 1 for n in shapes.FACTORS.values()]


@pytest.mark.slow
def test_all_images_differ_as_binary_ones_too():
    seen = set()
    for part in shapes.draw_factors(shapes.COMBINATIONS).split(8192):
        binary = shapes.render(part, (64, 64)) > 0.5
        seen |= {np.packbits(image).tobytes() for image in binary.flatten(1).numpy()}
    assert len(seen) == shapes.COMBINATIONS


@pytest.mark.parametrize("size", [(), (16,), (24, 40)])
def test_the_named_set_comes_with_its_factors(size):
    data = load("shapes", image_size=size, mode="none")
    shape = (32, 32) if not size else (size[0], size[-1])
    assert data.sizes == "20,000 train, 2,000 validation, 4,000 test"
    assert data.data_shape == (1, *shape)
    for name, split in data.splits.items():
        factors = shapes.factors(name)
        assert torch.equal(split.y, factors[:, 0])
        rows = torch.arange(0, len(factors), 37)
        assert torch.equal(split.x[rows], shapes.render(factors[rows], shape))
    whole = torch.cat([shapes.factors(name) for name in shapes.SPLITS])
    assert len(whole.unique(dim=0)) == len(whole) == 26_000


def test_no_validation_data_leave_the_others_as_they_are():
    data = load("shapes", val_size=0, mode="none")
    assert data.validation is None
    assert torch.equal(data.train.y, shapes.factors("train")[:, 0])


def test_a_reader_is_small_and_draws_what_is_asked(capsys):
    reader = shapes.Drawn(shapes.draw_factors(50), (16, 16))
    again = pickle.loads(pickle.dumps(reader))
    rows = np.array([7, 3])
    assert torch.equal(again.read(rows), shapes.render(reader.factors[[7, 3]], (16, 16)))
    assert main(["shapes"]) == 0
    assert (
        "shapes: 20,000 train, 2,000 validation, 4,000 test, each 1 x 32 x 32; needs no files"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: shapes.draw_factors(0), "num: expected at least 1, got 0"),
        (lambda: shapes.factors("tset"), "split 'tset'"),
        (
            lambda: shapes.render(torch.zeros(2, 4, dtype=torch.long)),
            r"factors: expected whole numbers of shape \(N, 5\)",
        ),
        (lambda: shapes.render(torch.zeros(2, 5)), r"of torch.float32; see draw_factors"),
        (lambda: shapes.render(torch.full((2, 5), 3)), "factors: expected shape from 0 to 2, got 3 to 3"),
        (
            lambda: shapes.render(torch.zeros(2, 5, dtype=torch.long), (7, 32)),
            "at least 8 pixels.*got 7 x 32; choose a larger size",
        ),
        (lambda: load("shapes", image_size=(4,)), "at least 8 pixels.*got 4 x 4"),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
