from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pyro_vae.evidence.annealing.bidirectional import Bracket, bidirectional
from tests.oracles import LinearGaussian, mixture, within

ORACLE = LinearGaussian()
DOUBLE = {"dtype": torch.float64}


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("dim", "shift", "stretch", "start"),
    [
        (2, 0.0, 2.0, "prior"),
        (10, 0.0, 0.5, "guide"),
        *(
            pytest.param(dim, shift, stretch, start, marks=pytest.mark.slow)
            for dim in (1, 2, 5, 10)
            for shift, stretch in [(0.0, 2.0), (0.0, 0.5), (1.0, 1.0)]
            for start in ("prior", "guide")
        ),
    ],
)
def test_the_bracket_holds_the_exact_value(dim, shift, stretch, start):
    oracle = LinearGaussian(data_dim=dim + 2, latent_dim=dim)
    steps = 60 if start == "guide" else 50 * dim
    bracket = bidirectional(
        oracle.model, oracle.guide(shift, stretch), oracle.draw(40), num_steps=steps, start=start, seed=1
    )
    exact = oracle.log_px(bracket.args[0])
    lower, upper = (bound - exact for bound in (bracket.lower.log_px, bracket.upper.log_px))
    mean, error = mean_and_error(lower)
    assert float(mean) < 4 * float(error)
    mean, error = mean_and_error(upper)
    assert float(mean) > -4 * float(error)
    # The laws: E[w] = p and E[1/w] = 1/p, whatever the moves.
    for ratio in (lower.exp(), (-upper).exp()):
        assert within(*map(float, (ratio.mean(), 1.0)), mean_and_error(ratio)[1])
    assert float(bracket.gap.mean()) < 0.3


def test_a_short_path_gives_a_wide_bracket_on_the_right_sides():
    bracket = bidirectional(ORACLE.model, None, torch.zeros(100, 5, **DOUBLE), num_steps=4, num_chains=4, seed=0)
    exact = ORACLE.log_px(bracket.args[0])
    mean, error = mean_and_error(bracket.lower.log_px - exact)
    assert float(mean) < -4 * float(error)
    mean, error = mean_and_error(bracket.upper.log_px - exact)
    assert float(mean) > 4 * float(error)
    mean, error = mean_and_error(bracket.gap)
    assert float(mean) > 4 * float(error)


def test_a_guide_that_is_the_posterior_leaves_no_gap():
    bracket = bidirectional(ORACLE.model, ORACLE.guide(), ORACLE.draw(6), num_steps=4, start="guide")
    torch.testing.assert_close(bracket.gap, torch.zeros(6, **DOUBLE), rtol=0, atol=1e-9)
    assert bool(bracket.upper.reliable.all())
    assert float(bracket.upper.std_error.max()) < 1e-9


@pytest.mark.parametrize("chains", [None, 8])
def test_posterior_draws_of_data_of_ones_own(chains):
    x = ORACLE.draw(60)
    mean, factor = ORACLE.posterior(x)
    noise = torch.randn(*(() if chains is None else (chains,)), 60, 2, **DOUBLE)
    z = mean + noise @ factor.T
    bracket = bidirectional(
        ORACLE.model, ORACLE.guide(0.0, 2.0), x, posterior_draws={"z": z}, num_chains=8, num_steps=30, start="guide"
    )
    assert bracket.args[0] is x
    ratio = (ORACLE.log_px(x) - bracket.upper.log_px).exp()
    assert within(ratio.mean(), 1.0, ratio.std() / math.sqrt(60))
    assert float(bracket.gap.mean()) < 0.2


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({}, "expected draws of latent site 'z', got none"),
        (
            {"z": torch.zeros(3, 2)},
            r"expected 'z' of shape \(4, 2\), or with a leading dimension of chains, got \(3, 2\)",
        ),
        ({"z": torch.zeros(3, 4, 2)}, "one for each of 16 chains, got 3; pass num_chains=3"),
    ],
)
def test_posterior_draws_that_do_not_fit_are_refused(draws, message):
    with pytest.raises(ValueError, match=f"posterior_draws: {'expected ' * message.startswith('one')}.*{message}"):
        bidirectional(ORACLE.model, ORACLE.guide(), ORACLE.draw(4), posterior_draws=draws)


def test_summary_and_batches():
    options = {"num_steps": 5, "num_chains": 4, "num_leapfrog": 2, "start": "guide"}
    parts = [bidirectional(ORACLE.model, ORACLE.guide(0.2), ORACLE.draw(n), **options) for n in (5, 3)]
    joined = Bracket.cat(parts)
    assert torch.equal(joined.args[0], torch.cat([part.args[0] for part in parts]))
    assert torch.equal(joined.gap, torch.cat([part.gap for part in parts]))
    summary = joined.summary()
    lower, upper = joined.lower.log_px, joined.upper.log_px
    assert summary.lower == pytest.approx(float(lower.mean()))
    assert summary.upper == pytest.approx(float(upper.mean()))
    assert summary.gap == pytest.approx(summary.upper - summary.lower)
    assert summary.gap_std_error == pytest.approx(float((upper - lower).std()) / math.sqrt(8))
    assert summary.lower_bound == pytest.approx(summary.lower - math.log(20) / 8)
    assert summary.upper_bound == pytest.approx(summary.upper + math.log(20) / 8)
    assert summary.lower_mc_error == pytest.approx(float(joined.lower.std_error.square().mean().sqrt()) / math.sqrt(8))
    assert summary.upper_mc_error == pytest.approx(float(joined.upper.std_error.square().mean().sqrt()) / math.sqrt(8))
    assert (summary.num_data, summary.num_chains, summary.num_steps) == (8, 4, 5)
    torch.testing.assert_close(joined.upper.bias, joined.upper.std_error.square() / 2)
    assert all(v is not None for v in dataclasses.asdict(summary).values())
    with pytest.raises(ValueError, match="cat: expected at least one bracket"):
        Bracket.cat([])


def test_discrete_latents_and_bad_numbers_are_refused():
    oracle = mixture()
    with pytest.raises(ValueError, match="latent site 'z': expected a continuous distribution"):
        bidirectional(oracle.model, oracle.exact_guide, torch.zeros(2, **DOUBLE))
    with pytest.raises(ValueError, match="num_chains: expected at least 1, got 0"):
        bidirectional(ORACLE.model, ORACLE.guide(), ORACLE.draw(2), num_chains=0)
