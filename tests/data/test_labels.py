"""Several columns, labels that are unknown, and the orders in which they come."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae.data import Batches, Inputs, Split
from pyro_vae.data.batches import Mixed, Shuffled, Spread, order_of
from pyro_vae.data.labels import check_labels, encode_labels, keep_labels, num_classes
from pyro_vae.data.stored import MemoryReader, Stored
from pyro_vae.parallel import World


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ragged(size: int, known: int) -> torch.Tensor:
    y = torch.full((size,), -1)
    y[torch.randperm(size, generator=seeded(3))[:known]] = torch.arange(known) % 10
    return y


def test_rows_of_all_columns_stay_together():
    x, y = torch.arange(20.0)[:, None], torch.arange(20) * 3
    columns = Inputs(x, y)
    for rows in (torch.tensor([4, 1, 4]), slice(3, 9)):
        first, second = columns[rows]
        torch.testing.assert_close(first[:, 0] * 3, second.float(), rtol=0, atol=0)
    parts = list(columns.split(6))
    assert [len(part[0]) for part in parts] == [6, 6, 6, 2]
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), y, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"inputs: expected the same number of rows in each input, got 20, 19"):
        Inputs(x, y[1:])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("redraw", [False, True])
def test_stored_columns_come_as_those_in_memory(num_workers, redraw):
    values = np.random.default_rng(0).integers(0, 256, (37, 4), dtype=np.uint8)
    stored, y = Stored(MemoryReader(values)), torch.arange(37)
    memory = Batches(Inputs(stored.in_memory(), y), 10, redraw)
    lazy = Batches(Inputs(stored, y), 10, redraw, num_workers)
    for ours, theirs in zip(lazy.epoch(seeded()), memory.epoch(seeded()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert isinstance(ours, tuple)


def test_one_column_comes_as_a_tensor_does():
    x = torch.rand(23, 3, generator=seeded(1))
    pairs = zip(Batches(Inputs(x), 5).epoch(seeded()), Batches(x, 5).epoch(seeded()), strict=True)
    for (ours,), theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_processes_share_every_column():
    columns = Inputs(torch.arange(17.0)[:, None], torch.arange(17))
    whole = list(Batches(columns, 6).epoch(seeded()))
    shares = [list(Batches(columns, 6, world=World(rank, 2)).epoch(seeded())) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for k, column in enumerate(batch):
            torch.testing.assert_close(torch.cat([part[k] for part in parts]), column, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "known", "batch_size"), [(100, 10, 20), (103, 7, 10), (50, 49, 8), (40, 1, 7)])
def test_spread_labels_come_once_each_and_evenly(size, known, batch_size):
    y = ragged(size, known)
    order = Spread(y >= 0, batch_size)
    generator = seeded()
    first, second = order(generator), order(generator)
    for found in (first, second):
        assert sorted(found.tolist()) == list(range(size))
        counts = [int((y[rows] >= 0).sum()) for rows in found.split(batch_size)[:-1]]
        assert max(counts) - min(counts) <= 1
    assert first.tolist() != second.tolist()
    assert order(seeded()).tolist() == first.tolist()


@pytest.mark.parametrize(
    ("size", "batch_size"), [(103, 10), (101, 10), (65, 64), (129, 64), (30, 7), (40, 8), (12, 64)]
)
def test_as_many_labels_as_batches_leave_no_batch_without(size, batch_size):
    """The last one too, however short: the classifier's term, a mean over a batch's labels, is in every step."""
    batches, generator, places = -(-size // batch_size), seeded(), set()
    for known in range(batches, size):
        y = ragged(size, known)
        order = Spread(y >= 0, batch_size)
        for _ in range(20):
            found = order(generator)
            assert sorted(found.tolist()) == list(range(size))
            counts = [int((y[rows] >= 0).sum()) for rows in found.split(batch_size)]
            assert min(counts) >= 1
            assert size < batch_size or max(counts[: size // batch_size]) - min(counts[: size // batch_size]) <= 1
            places |= set((y[found] >= 0).nonzero()[:, 0].tolist())
    assert places == set(range(size))


@pytest.mark.parametrize(
    ("size", "known", "batch_size", "per_batch"), [(100, 10, 20, 5), (103, 7, 10, 9), (61, 30, 8, 1)]
)
def test_every_whole_batch_has_as_many_labels_as_asked(size, known, batch_size, per_batch):
    y = ragged(size, known)
    order = Mixed(y >= 0, batch_size, per_batch)
    found = order(seeded())
    assert len(found) == order.total
    assert sorted(found[y[found] < 0].tolist()) == (y < 0).nonzero()[:, 0].tolist()
    parts = found.split(batch_size)
    assert {int((y[rows] >= 0).sum()) for rows in parts if len(rows) == batch_size} == {per_batch}
    times = torch.bincount(found, minlength=size)[y >= 0]
    assert int(times.max() - times.min()) <= 1  # each as often as the others
    assert len(list(Batches(Inputs(torch.zeros(size, 1), y), batch_size, order=order).epoch(seeded()))) == len(parts)


def test_the_order_suits_the_labels():
    assert isinstance(order_of(None, 9, 3), Shuffled)
    assert isinstance(order_of(torch.arange(9), 9, 3), Shuffled)
    assert isinstance(order_of(torch.full((9,), -1), 9, 3), Shuffled)
    assert isinstance(order_of(torch.rand(9, 2), 9, 3), Shuffled)
    assert isinstance(order_of(ragged(9, 2), 9, 3), Spread)
    assert isinstance(order_of(ragged(9, 2), 9, 3, 1), Mixed)
    with pytest.raises(ValueError, match="labelled_per_batch: needs both labelled and unlabelled data"):
        order_of(torch.arange(9), 9, 3, 1)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"labelled_per_batch: expected between 1 and 2, got {wrong}"):
            order_of(ragged(9, 2), 9, 3, wrong)


@pytest.mark.parametrize("count", [10, 25, 100])
def test_kept_labels_are_balanced_true_and_chosen_by_seed(count):
    y = torch.arange(500) % 10
    kept = keep_labels(y, count, 0)
    assert int((kept >= 0).sum()) == count
    assert torch.equal(kept[kept >= 0], y[kept >= 0])
    per_class = torch.bincount(kept[kept >= 0], minlength=10)
    assert int(per_class.max() - per_class.min()) == (count % 10 > 0)
    assert torch.equal(kept, keep_labels(y, count, 0))
    assert not torch.equal(kept, keep_labels(y, count, 1))


@pytest.mark.parametrize(
    ("y", "count", "sentence"),
    [
        (None, 5, "labels: cannot keep 5 labels, since these data have no labels"),
        (torch.arange(50) % 10, 9, r"labels: expected from 10 \(one of each class\) to 50 \(all labels\), got 9"),
        (torch.arange(50) % 10, 51, "got 51"),
        (
            torch.tensor([0] * 9 + [1]),
            4,
            "labels: 4 labels need 2 of class 1, but the data have 1",
        ),
    ],
)
def test_labels_that_cannot_be_kept_are_refused(y, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        keep_labels(y, count, 0)


def test_minus_one_stays_unknown_in_files():
    (train, test), words = encode_labels([np.array([3, -1, 0]), np.array([-1, 5])])
    assert (train.tolist(), test.tolist(), words) == ([3, -1, 0], [-1, 5], "3 labels")
    (large,), words = encode_labels([np.array([2000, -1, 5000])])
    assert (large.tolist(), words) == ([0, -1, 1], "2 labels: 0 = 2000, 1 = 5000")
    assert num_classes([train, None, test]) == 6
    (train, test), words = encode_labels([np.array([3.0, -1.0]), np.array([0, -1])])  # of one split stored as floats
    assert (train.tolist(), test.tolist(), words) == ([3, -1], [0, -1], "2 labels")
    for wrong in ([0, -2], [0.0, -2.0]):
        with pytest.raises(ValueError, match="file: expected whole numbers from 0, or -1 for unknown, got -2 in row 1"):
            encode_labels([np.array(wrong)], "file")
    with pytest.raises(ValueError, match="row 0 has no label; write -1 for an unknown label"):
        encode_labels([np.array([np.nan, 0.0])])
    for blank in ("", " ", "\t"):  # else they would be a class of their own
        with pytest.raises(ValueError, match="row 1 has no label; write -1 for an unknown label"):
            encode_labels([np.array(["cat", blank, "dog"])])
    assert num_classes([torch.full((3,), -1)]) is None


@pytest.mark.parametrize(
    ("y", "classes", "complete", "sentence"),
    [
        ([0, 1, 3], 3, False, "labels: expected whole numbers from 0 to 2, or -1 for unknown, got 3 in row 2"),
        ([0, -2], None, False, "labels: expected whole numbers from 0, or -1 for unknown, got -2 in row 1"),
        ([0, -1], 2, True, r"labels: this model needs a label for every datum, but row 1 has none \(-1\)"),
    ],
)
def test_labels_without_a_class_are_refused(y, classes, complete, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_labels(torch.tensor(y), classes, complete)
    check_labels(torch.tensor([0, -1, 1]), 2, False)
    check_labels(torch.rand(3, 2), 2, True)


def test_a_split_gives_the_columns_that_are_there():
    split = Split(torch.rand(3, 2), torch.tensor([0, 1, -1]))
    assert [len(split.inputs(names).parts) for names in (("x",), ("x", "y"))] == [1, 2]
    assert split.without_labels().inputs(("x", "y"))[:][1].tolist() == [-1, -1, -1]
    with pytest.raises(
        ValueError, match="data: the model needs labels, since it takes x and y, but the data have none"
    ):
        Split(torch.rand(3, 2)).inputs(("x", "y"))
