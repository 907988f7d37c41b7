from __future__ import annotations

import math

import pytest
import torch

from pyro_vae.evidence.estimates.bits_per_dim import bits_per_dim, dequantize


def test_a_fair_coin_costs_one_bit():
    log_px = torch.tensor([784 * math.log(0.5), 0.0])
    assert bits_per_dim(log_px, 784).tolist() == pytest.approx([1.0, 0.0])


def test_dequantized_pixels_cost_what_the_integers_do():
    """A density that is constant over each level: P(v) L on [v / L, (v + 1) / L), whose bound is tight."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, generator=generator).double()
    p /= p.sum()
    v = torch.randint(4, (50, 12), generator=generator)
    y = dequantize(v, levels=4)
    assert torch.equal((y * 4).floor().long(), v)
    log_density = (p * 4).log()[(y * 4).long()].sum(1)
    torch.testing.assert_close(
        bits_per_dim(log_density, 12, density=True, levels=4), bits_per_dim(p.log()[v].sum(1), 12)
    )


def test_dequantized_pixels_are_uniform_within_a_level_and_below_one():
    y = dequantize(torch.full((100_000,), 255, dtype=torch.uint8))
    u = y.double() * 256 - 255
    assert float(y.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 100_000))
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.02)


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="needs dequantized pixels, but levels is None; dequantize"):
        bits_per_dim(torch.zeros(1), 784, density=True)
    with pytest.raises(ValueError, match="num_dims: expected at least 1, got 0"):
        bits_per_dim(torch.zeros(1), 0)
    with pytest.raises(ValueError, match="levels: expected at least 2, got 1"):
        bits_per_dim(torch.zeros(1), 1, levels=1)
    for pixels in (torch.tensor([0.5]), torch.tensor([256]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="pixels: expected integers from 0 to 255"):
            dequantize(pixels)
