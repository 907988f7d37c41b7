"""Laws of every named data set: a new one is a row in ``NAMED`` and, if it lies in files, in ``tests/data/fabricated.py``."""

from __future__ import annotations

import pickle

import pytest
import torch

from pyro_vae.data import NAMED, load
from pyro_vae.data.named.registry import FILES
from pyro_vae.data.source import Request
from tests.data.fabricated import fabricate

IN_FILES = {files.name for files in FILES}


@pytest.fixture(params=NAMED)
def name(request, tmp_path, monkeypatch):
    """A named set; small files in its format are in ``tmp_path``, if it has any."""
    if request.param in IN_FILES:
        fabricate(request.param, monkeypatch).put(tmp_path)
    return request.param


def splits(name, folder):
    parts = NAMED[name](Request((folder,), download=False))
    return [part for part in (parts.train, parts.validation, parts.test) if part is not None]


def test_pixels_are_between_0_and_1_and_labels_count_from_0(name, tmp_path):
    shape = splits(name, tmp_path)[0].x[torch.arange(1)].shape[1:]
    assert len(shape) == 3
    for x, y in splits(name, tmp_path):
        some = x[torch.arange(min(len(x), 50))]
        assert some.dtype == torch.float32
        assert some.shape[1:] == shape
        assert 0 <= float(some.min()) < 0.1
        assert 0.7 < float(some.max()) <= 1
        if y is not None and y.dim() == 1:
            assert y.dtype == torch.int64
            assert y.shape == (len(x),)
            assert int(y.min()) >= 0


def test_rows_are_those_of_the_whole_in_any_order_and_in_another_process(name, tmp_path):
    rows = torch.tensor([1, 0])
    for x, _ in splits(name, tmp_path):
        expected = torch.cat([x[rows[k : k + 1]] for k in range(2)])
        assert torch.equal(x[rows], expected)
        assert torch.equal(x.take(rows)[torch.arange(2)], expected)
        assert torch.equal(pickle.loads(pickle.dumps(x))[rows], expected)
        assert not torch.equal(expected[0], expected[1])


def test_image_size_acts_on_every_split(name, tmp_path):
    plain, small = (load(name, data_dir=tmp_path, download=False, image_size=size, mode="none") for size in ((), (16,)))
    assert small.sizes == plain.sizes
    for split in ("train", "validation", "test"):
        ours, whole = getattr(small, split), getattr(plain, split)
        rows = torch.arange(min(len(ours.x), 50))
        assert ours.x[rows].shape[-2:] == (16, 16)
        assert torch.allclose(ours.x[rows].mean((2, 3)), whole.x[rows].mean((2, 3)), atol=0.02)
        assert (ours.y is None and whole.y is None) or torch.equal(ours.y, whole.y)


def test_a_seed_chooses_the_validation_data_and_never_the_test_data(name, tmp_path):
    """Unless the set has validation data of its own."""
    own = NAMED[name](Request((tmp_path,), download=False)).validation is not None
    first, again, other = (load(name, data_dir=tmp_path, download=False, mode="none", seed=seed) for seed in (0, 0, 1))
    rows = torch.arange(min(len(first.train.x), 50))
    assert torch.equal(first.train.x[rows], again.train.x[rows])
    assert torch.equal(first.train.x[rows], other.train.x[rows]) == own
    assert torch.equal(first.test.x[rows[:2]], other.test.x[rows[:2]])
    assert first.sizes == other.sizes
