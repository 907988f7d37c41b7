"""Noise that belongs to a datum, whatever it is drawn with."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyro_vae.evidence.importance.noise_streams import BLOCK_DRAWS, ESTIMATE, PILOT, NoiseStreams
from pyro_vae.inference.program.noise import NoiseShape

CPU = torch.device("cpu")
IDS = torch.tensor([5, 0, 2**40, 17])


def like(width: int = 3, dtype: torch.dtype = torch.float32) -> NoiseShape:
    return NoiseShape(width, dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 600, BLOCK_DRAWS, 5000])
def test_chunks_cut_one_sequence(size, dtype):
    num = 2 * BLOCK_DRAWS + 100 if size > 1 else 150
    whole = NoiseStreams(3, IDS)("z", 0, num, like(3, dtype))
    streams = NoiseStreams(3, IDS)
    parts = [streams("z", start, min(size, num - start), like(3, dtype)) for start in range(0, num, size)]
    assert torch.equal(torch.cat(parts), whole)
    assert (whole.shape, whole.dtype) == ((num, 4, 3), dtype)


def test_any_draw_can_be_had_at_once():
    whole = NoiseStreams(3, IDS)("z", 0, 2500, like())
    streams = NoiseStreams(3, IDS)
    for start, num in [(2000, 300), (10, 5), (10, 5), (BLOCK_DRAWS, 1), (BLOCK_DRAWS - 1, 2), (2499, 1)]:
        assert torch.equal(streams("z", start, num, like()), whole[start : start + num])


def test_a_datum_has_the_same_noise_in_any_company():
    whole = NoiseStreams(3, IDS)("z", 0, 50, like())
    order = torch.tensor([2, 0, 3])
    assert torch.equal(NoiseStreams(3, IDS[order])("z", 0, 50, like()), whole[:, order])


def test_threads_change_nothing(monkeypatch):
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(NoiseStreams(3, IDS)("z", 0, 2000, like(50)))
    assert torch.equal(*found)


def test_each_key_has_numbers_of_its_own():
    """Seed, purpose, site, datum and block: correlations between any two are those of independent normals."""
    num = BLOCK_DRAWS
    found = []
    for seed, purpose, site in itertools.product((0, 1), (ESTIMATE, PILOT), ("z", "y")):
        noise = NoiseStreams(seed, torch.arange(3), purpose)(site, 0, 2 * num, like(4, torch.float64))
        found += [part[:, i].flatten() for part in noise.split(num) for i in range(3)]
    together = torch.stack(found)
    correlation = together @ together.T / together.shape[1]
    pairs = correlation[torch.triu(torch.ones_like(correlation), 1) > 0] * math.sqrt(together.shape[1])
    assert len(pairs) == 48 * 47 // 2
    assert float(pairs.abs().max()) < 5
    assert abs(float(pairs.var()) - 1) < 4 * math.sqrt(2 / len(pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_standard_normal(dtype):
    found = NoiseStreams(1, torch.arange(100))("z", 0, 1000, like(4, dtype)).double()
    num = found.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float(found.pow(power).mean()) - moment) < 4 * math.sqrt(variance / num)
    uniform = (0.5 * (1 + torch.erf(found / math.sqrt(2)))).flatten().sort().values
    distance = (uniform - (torch.arange(num).double() + 0.5) / num).abs().max()
    assert float(distance) < 2 / math.sqrt(num)  # Kolmogorov and Smirnov: one time in 1,500


def test_nothing_is_asked_of_a_site_without_noise():
    assert NoiseStreams(1, IDS)("z", 0, 5, like(0)).shape == (5, 4, 0)


def test_half_precision_is_rounded_from_single():
    ours, single = (NoiseStreams(1, IDS)("z", 0, 5, like(3, dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(ours, single.bfloat16())
