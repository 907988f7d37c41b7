"""MIG and FactorVAE's score of codes that are perfect, random and rotated, and of noisy ones by quadrature."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.data.named import shapes
from pyro_vae.evidence.criticism.disentanglement import factor_vae_score, mutual_information_gap
from tests.oracles import within

GRID = torch.cartesian_prod(torch.arange(4), torch.arange(4))
MANY = GRID.repeat(50, 1)


def rotated(degrees, factors=MANY):
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return (factors - 1.5).double() @ turn.T


def noisy(degrees, scale, factors=MANY):
    return dist.Normal(rotated(degrees, factors), scale).to_event(1)


def by_quadrature(degrees, scale):
    """I(z_j; v_k) of two factors of four values under noise, shape (2, 2)."""
    axis = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = dist.Normal(rotated(degrees, GRID), scale).log_prob(axis[:, None, None]).exp()  # (G, 16, 2)
    cell = float(axis[1] - axis[0])
    whole = density.mean(1)
    found = torch.zeros(2, 2, dtype=torch.float64)
    for k in (0, 1):
        for value in range(4):
            given = density[:, GRID[:, k] == value].mean(1)
            ratio = torch.where(given > 0, (given / whole).log(), 0)
            found[:, k] += (given * ratio).sum(0) * cell / 4
    return found


# Perfect


def test_a_perfect_code_has_the_highest_scores():
    factors = shapes.draw_factors(4000)
    for change in (lambda v: v, lambda v: v.exp(), lambda v: -v.flip(1)):
        codes = change(factors.double())
        gap = mutual_information_gap(codes, factors)
        assert gap.value > 0.95  # of 4,000 data the other units seem to say something: by chance
        score = factor_vae_score(codes, factors, seed=0)
        assert (score.value, score.std_error) == (1.0, 0.0)
    gap = mutual_information_gap(MANY.double(), MANY)
    assert gap.value == pytest.approx(1.0, abs=1e-12)
    assert gap.std_error == pytest.approx(0.0, abs=1e-12)
    assert gap.entropy.tolist() == pytest.approx([math.log(4)] * 2)
    assert torch.allclose(gap.shares, torch.eye(2, dtype=torch.float64), atol=1e-12)
    assert gap.sentence == "MIG 1.000 (error over data 0.000), of 2 factors."


def test_a_perfect_code_with_little_noise_is_perfect():
    gap = mutual_information_gap(noisy(0, 0.05), MANY, seed=0)
    assert within(gap.value, 1.0, gap.std_error + 1e-3)
    assert gap.std_error < 0.05


# Random


def test_a_code_that_says_nothing_has_the_lowest():
    factors = shapes.draw_factors(3000)
    same = dist.Normal(torch.zeros(3000, 4), 1.0).to_event(1)
    gap = mutual_information_gap(same, factors, seed=0)
    assert gap.information.abs().max() < 1e-12
    assert gap.value == pytest.approx(0.0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(3000, 4, generator=generator)
    binned = mutual_information_gap(codes, factors)
    # A histogram finds about (bins - 1) (values - 1) / (2 N) in nothing.
    excess = 19 * (torch.tensor([*shapes.FACTORS.values()]) - 1).double() / 6000
    spread = (2 * excess / 3000).sqrt()  # half a chi-squared over N
    assert ((binned.information - excess).abs() < 5 * spread).all()
    assert binned.value < float((5 * spread / binned.entropy).mean())
    score = factor_vae_score(codes, factors, num_votes=2000, seed=0)
    assert within(score.value, 1 / 5, score.std_error)
    assert int(score.votes.sum()) == 2000
    assert "where chance is 0.200" in score.sentence


# Rotated


def test_a_code_rotated_by_45_degrees_has_no_gap():
    gap = mutual_information_gap(rotated(45).round(decimals=9), MANY)
    assert gap.information.min() > 0.4  # each unit says much of both
    assert gap.value == pytest.approx(0.0, abs=1e-9)
    noise = mutual_information_gap(noisy(45, 0.3), MANY, seed=1)
    assert noise.value < 4 * noise.std_error + 0.02
    many = MANY.repeat(50, 1)  # of few data the noise that is there once would favour a unit
    codes = rotated(45, many) + 0.1 * torch.randn(len(many), 2, generator=torch.Generator().manual_seed(0)).double()
    score = factor_vae_score(codes, many, num_votes=2000, seed=0)
    assert within(score.value, 1 / 2, score.std_error)
    assert score.std_error == pytest.approx(math.sqrt(score.value * (1 - score.value) / 2000))


@pytest.mark.parametrize("probs", [[0.25] * 4, [0.7, 0.2, 0.05, 0.05]], ids=["even", "uneven"])
def test_the_error_is_that_over_data(probs):
    """The scatter over data sets, within four standard errors of it and a tenth; H(v) varies too where values are uneven."""
    torch.manual_seed(0)
    found = []
    for _ in range(80):
        factors = torch.multinomial(torch.tensor(probs), 1200, replacement=True).reshape(600, 2)
        found.append(mutual_information_gap(noisy(0, 0.3, factors), factors))
    values, errors = (torch.tensor([getattr(gap, name) for gap in found]) for name in ("value", "std_error"))
    scatter = float(values.std())
    assert within(errors.mean(), scatter, scatter / math.sqrt(158) + scatter / 40)


@pytest.mark.parametrize("degrees", [0, 10, 25])
def test_a_code_rotated_by_less_against_quadrature(degrees):
    """FactorVAE's score does not see it: of a factor that stands still the nearer unit is the stiller one."""
    exact = by_quadrature(degrees, 0.3)
    gap = mutual_information_gap(noisy(degrees, 0.3), MANY, seed=3)
    best = exact.sort(0, descending=True).values
    expected = float(((best[0] - best[1]) / math.log(4)).mean())
    assert within(gap.value, expected, gap.std_error)
    assert (gap.information - exact).abs().max() < 5 / math.sqrt(len(MANY))
    assert expected < 1 - 0.01 * degrees
    assert factor_vae_score(rotated(degrees), MANY, seed=0).value == 1.0


def test_errors_are_those_of_repetitions():
    exact = by_quadrature(20, 0.4).sort(0, descending=True).values
    expected = float(((exact[0] - exact[1]) / math.log(4)).mean())
    squares = []
    for seed in range(150):
        gap = mutual_information_gap(noisy(20, 0.4, GRID.repeat(20, 1)), GRID.repeat(20, 1), seed=seed)
        squares.append(((gap.value - expected) / gap.std_error) ** 2)
    # Each datum has one draw, so that the scatter between data is counted too: the errors may be too large, never small.
    assert 0.4 < sum(squares) / 150 < 1.3


# What changes nothing, and what does


def test_order_of_data_chunks_and_values_change_nothing():
    q = noisy(20, 0.4)
    whole = mutual_information_gap(q, MANY, seed=0)
    for size in (1, 5000):
        assert mutual_information_gap(q, MANY, seed=0, max_elements=size).value == pytest.approx(whole.value, abs=1e-12)
    assert mutual_information_gap(q, 7 - 2 * MANY, seed=0).value == pytest.approx(whole.value, abs=1e-12)
    assert mutual_information_gap(q, MANY, seed=1).value != whole.value
    order = torch.randperm(len(MANY), generator=torch.Generator().manual_seed(0))
    codes = rotated(20)
    moved = mutual_information_gap(codes[order], MANY[order])
    assert moved.value == pytest.approx(mutual_information_gap(codes, MANY).value, abs=1e-12)
    state = torch.get_rng_state()
    factor_vae_score(codes, MANY, seed=0)
    mutual_information_gap(q, MANY, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_every_argument_acts():
    codes = rotated(20) + 0.1 * torch.randn(len(MANY), 2, generator=torch.Generator().manual_seed(0)).double()
    assert mutual_information_gap(codes, MANY, num_bins=4).value != mutual_information_gap(codes, MANY).value
    assert int(factor_vae_score(codes, MANY, num_votes=11, seed=0).votes.sum()) == 11
    few, many = (factor_vae_score(rotated(35), MANY, 2000, size, seed=0).value for size in (2, 100))
    assert few < many - 0.1  # of few data the variance is not known


def test_a_unit_that_is_not_used_has_no_vote():
    still = torch.cat([MANY.double(), torch.full((len(MANY), 1), 0.3).double()], 1)
    still[0, 2] += 0.01
    score = factor_vae_score(still, MANY, seed=0)
    assert score.value == 1.0
    assert score.votes[2].tolist() == [0, 0]
    faint = 1e-3 * torch.randn(len(MANY), 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="a variance above 0.01, got none; lower threshold"):
        factor_vae_score(faint, MANY)
    assert factor_vae_score(faint, MANY, seed=0, threshold=0.0).value < 0.7


def test_the_units_of_a_code_have_no_say():
    codes = rotated(42) + 0.3 * torch.randn(len(MANY), 2, generator=torch.Generator().manual_seed(0)).double()
    other = codes * torch.tensor([1.0, 50.0]).double() + 7
    plain, scaled = (factor_vae_score(c, MANY, seed=0) for c in (codes, other))
    assert plain.value < 1
    assert torch.equal(plain.votes, scaled.votes)
    assert mutual_information_gap(other, MANY).value == pytest.approx(mutual_information_gap(codes, MANY).value)


def test_a_second_unit_with_the_same_factor_costs_the_gap_alone():
    codes = torch.cat([MANY, MANY[:, :1]], 1).double()
    gap = mutual_information_gap(codes, MANY)
    assert gap.gaps.tolist() == pytest.approx([0.0, 1.0])
    assert factor_vae_score(codes, MANY, seed=0).value == 1.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mutual_information_gap(torch.zeros(9, 1), MANY[:9]), "at least 2 units, got .9, 1."),
        (
            lambda: mutual_information_gap(MANY.double(), MANY[:9]),
            r"factors: expected whole numbers of shape \(800, F\)",
        ),
        (lambda: mutual_information_gap(MANY.double(), MANY.double()), "of torch.float64"),
        (
            lambda: mutual_information_gap(MANY.double(), MANY[:, :1] * 0),
            "at least two values of each factor, got one in column 0",
        ),
        (
            lambda: mutual_information_gap(MANY.double(), MANY, num_bins=3),
            "at least 4, the number of values of a factor, got 3",
        ),
        (lambda: mutual_information_gap(MANY / torch.zeros(1), MANY), "codes: expected finite numbers"),
        (lambda: mutual_information_gap(bent(), MANY), "got MultivariateNormal whose units depend.*pass the mean"),
        (lambda: factor_vae_score(torch.zeros(800, 2), MANY), "codes: expected a unit with a variance above"),
        (lambda: factor_vae_score(MANY.double(), MANY, batch_size=1), "batch_size: expected at least 2"),
        (lambda: factor_vae_score(MANY.double(), MANY, threshold=-1.0), "threshold: expected a number of at least 0"),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def bent():
    return dist.MultivariateNormal(torch.zeros(800, 2), torch.eye(2))
