from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from pyro_vae.data import BINARIZE, Batches, Stored, binarize
from pyro_vae.data.stored import ArrayFile, Scaled


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(n: int) -> torch.Tensor:
    """Images with their number in seven pixels of 0 and 1, which binarization leaves alone, beside 64 grey ones."""
    bits = (torch.arange(n)[:, None] >> torch.arange(7)) & 1
    return torch.cat([bits.float(), torch.full((n, 64), 0.5)], dim=1).reshape(n, 1, 1, 71)


def numbers(x: torch.Tensor) -> torch.Tensor:
    return (x.reshape(len(x), -1)[:, :7].long() << torch.arange(7)).sum(1)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_draws_have_the_grey_value_as_their_mean(mode):
    n = 40_000
    grey = torch.tensor([0.01, 0.2, 0.5, 0.77, 0.99], dtype=torch.float64)
    mean = binarize(grey.expand(n, 5), mode, seeded()).mean(0)
    assert bool(((mean - grey).abs() < 4 * (grey * (1 - grey) / n).sqrt()).all())


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_draws_of_two_pixels_are_independent(mode):
    n = 40_000
    x = binarize(torch.full((n, 2), 0.3, dtype=torch.float64), mode, seeded())
    covariance = ((x[:, 0] - 0.3) * (x[:, 1] - 0.3)).mean()
    assert abs(float(covariance)) < 4 * 0.21 / math.sqrt(n)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_draws_keep_black_and_white_and_repeat_by_seed(mode):
    x = torch.tensor([0.0, 1.0, 0.5]).repeat(500, 1)
    drawn = binarize(x, mode, seeded(1))
    assert torch.equal(drawn[:, :2], x[:, :2])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn, binarize(x, mode, seeded(1)))
    assert not torch.equal(drawn, binarize(x, mode, seeded(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", BINARIZE)
def test_shape_and_dtype_stay(mode, dtype):
    x = torch.rand(3, 2, 4, 5, dtype=dtype, generator=seeded())
    found = binarize(x, mode, seeded())
    assert (found.shape, found.dtype) == (x.shape, dtype)


def test_threshold_and_none():
    x = torch.tensor([0.0, 0.3, 0.5, 0.5001, 1.0])
    assert binarize(x, "threshold").tolist() == [0, 0, 0, 1, 1]
    assert binarize(x, "none") is x


def test_an_unknown_mode_lists_the_known_and_the_nearest():
    with pytest.raises(ValueError, match="unknown binarization 'dynamics'") as caught:
        binarize(torch.zeros(1), "dynamics")
    assert str(caught.value).endswith("expected one of dynamic, none, static, threshold; did you mean 'dynamic'?")


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize(("n", "size"), [(103, 10), (100, 10), (3, 10), (5, 1)])
def test_an_epoch_has_every_image_once(n, size, redraw):
    found = list(Batches(numbered(n), size, redraw).epoch(seeded()))
    assert [len(batch) for batch in found] == [size] * (n // size) + [n % size] * (n % size > 0)
    assert sorted(numbers(torch.cat(found)).tolist()) == list(range(n))


def test_each_epoch_has_its_own_order_and_a_seed_repeats_it():
    def orders(seed):
        generator = seeded(seed)
        return [numbers(torch.cat(list(Batches(numbered(103), 10).epoch(generator)))).tolist() for _ in range(2)]

    first, second = orders(0)
    assert first != second
    assert first != list(range(103))
    assert orders(0) == [first, second]
    assert orders(1) != [first, second]


def test_no_redraw_leaves_the_pixels():
    x = numbered(103)
    generator = seeded()
    for _ in range(2):
        epoch = torch.cat(list(Batches(x, 10).epoch(generator)))
        assert torch.equal(epoch, x[numbers(epoch)])


def test_redraw_gives_each_epoch_other_pixels():
    x, generator, drawn = numbered(103), seeded(), []
    for _ in range(2):
        epoch = torch.cat(list(Batches(x, 10, redraw=True).epoch(generator)))
        assert set(epoch.unique().tolist()) == {0.0, 1.0}
        drawn.append(epoch[numbers(epoch).argsort()].reshape(103, -1)[:, 7:])
    same = (drawn[0] == drawn[1]).double().mean()
    assert abs(float(same) - 0.5) < 4 * 0.5 / math.sqrt(drawn[0].numel())
    assert torch.equal(x, numbered(103))


# The same batches from memory, from a file and from workers


def stored(path, x: torch.Tensor) -> Stored:
    np.save(path, (255 * x).round().byte().numpy())
    mapped = np.load(path, mmap_mode="r")
    return Stored(ArrayFile(path, mapped.offset, mapped.dtype, mapped.shape, scaled=Scaled(255)))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (57, 1, 4, 3), generator=seeded(5)).float() / 255


@pytest.mark.parametrize(
    ("num_workers", "context", "redraw"),
    [
        (0, None, False),
        (0, None, True),
        (2, None, False),
        (2, None, True),
        pytest.param(2, "spawn", True, marks=pytest.mark.slow),
    ],
)
def test_memory_files_and_workers_give_the_same_batches(tmp_path, pixels, num_workers, context, redraw):
    lazy = Batches(stored(tmp_path / "x.npy", pixels), 10, redraw, num_workers, context)
    memory = Batches(pixels, 10, redraw)
    one, other = seeded(1), seeded(1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for _ in range(3):  # the workers outlive an epoch
        pairs = list(zip(memory.epoch(one), lazy.epoch(other), strict=True))
        assert [len(a) for a, _ in pairs] == [10, 10, 10, 10, 10, 7]
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_rest_of_an_epoch(tmp_path, pixels, num_workers):
    lazy = Batches(stored(tmp_path / "x.npy", pixels), 10, num_workers=num_workers)
    order = torch.randperm(57, generator=seeded(1))
    rest = list(lazy.rest(order, 4, seeded()))
    assert torch.equal(torch.cat(rest), pixels[order[40:]])


def test_a_worker_gets_the_path_and_not_the_data(tmp_path, pixels):
    lazy = stored(tmp_path / "x.npy", pixels.repeat(1000, 1, 1, 1))
    assert len(pickle.dumps(lazy)) < 2000
    assert torch.equal(pickle.loads(pickle.dumps(lazy))[3:5], pixels[3:5])


def test_stored_data_act_as_a_tensor(tmp_path, pixels):
    lazy = stored(tmp_path / "x.npy", pixels)
    index = torch.tensor([5, 3, 50, 3])
    assert (len(lazy), lazy.shape) == (57, pixels.shape)
    assert torch.equal(lazy[index], pixels[index])
    assert torch.equal(lazy[10:13], pixels[10:13])
    assert torch.equal(lazy[:], pixels)
    assert torch.equal(lazy.in_memory(), pixels)
    assert [len(part) for part in lazy.split(25)] == [25, 25, 7]
    assert torch.equal(torch.cat(list(lazy.split(25))), pixels)
    assert torch.equal(lazy.take(index)[1:3], pixels[index][1:3])
    assert torch.equal(lazy.take(index).take(torch.tensor([2, 0]))[:], pixels[[50, 5]])
    assert lazy.to(torch.device("meta"))[:].device.type == "meta"


def test_static_binarization_of_stored_data_belongs_to_the_row(tmp_path, pixels):
    lazy = dataclasses.replace(stored(tmp_path / "x.npy", pixels), mode="static", seed=1)
    drawn = lazy[:]
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(lazy.take(torch.tensor([9, 4]))[:], drawn[[9, 4]])
    assert not torch.equal(dataclasses.replace(lazy, seed=2)[:], drawn)
    many = torch.stack([dataclasses.replace(lazy, seed=seed)[:] for seed in range(400)]).mean(0)
    error = (pixels * (1 - pixels) / 400).sqrt()
    assert float((many - pixels).abs().max()) <= 5 * float(error.max())
    chi2 = ((many - pixels)[error > 0] / error[error > 0]).square()
    assert abs(float(chi2.mean()) - 1) < 5 * (2 / len(chi2)) ** 0.5
    assert torch.equal(dataclasses.replace(lazy, mode="threshold")[:], (pixels > 0.5).float())
