from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import pyro
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from pyro_vae.evidence import Estimate, importance_sampling
from pyro_vae.evidence.arviz_export import is_arviz_1
from pyro_vae.evidence.comparison import compare
from pyro_vae.evidence.stacking import stacking_gap, stacking_weights
from pyro_vae.system.imports import import_arviz
from tests.oracles import LinearGaussian

ORACLE = LinearGaussian()


@dataclass(frozen=True)
class Values:
    """Pointwise log p(x) with a given Monte Carlo error."""

    log_px: Tensor
    std_error: Tensor
    reliable: Tensor


def values(log_px: Tensor, std_error: float = 0.0) -> Values:
    noise = std_error * torch.randn(len(log_px), dtype=torch.float64)
    return Values(log_px + noise, torch.full_like(log_px, std_error), torch.ones(len(log_px), dtype=torch.bool))


def gaussians(num: int, scales: tuple[float, ...], std_error: float = 0.3) -> dict[str, Values]:
    """Five-dimensional N(0, s^2) densities of data from N(0, 1): E[log p_s] = -5/2 (log 2 pi s^2 + 1 / s^2)."""
    x = torch.randn(num, 5, dtype=torch.float64)
    return {f"{s}": values(torch.distributions.Normal(0.0, s).log_prob(x).sum(-1), std_error) for s in scales}


def expected(scale: float) -> float:
    return -2.5 * (math.log(2 * math.pi * scale**2) + scale**-2)


def repeats(count: int) -> range:
    torch.manual_seed(1)
    return range(count)


MANY = pytest.param(3000, marks=pytest.mark.slow)


@pytest.mark.parametrize("count", [150, MANY])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover_a_known_difference(level, count):
    """Test sets of 100 data, with a Monte Carlo error of 0.3 nats in each."""
    exact, covered = expected(1.2) - expected(1.0), 0
    for _ in repeats(count):
        row = compare(gaussians(100, (1.0, 1.2)), reference="1.0", level=level)["1.2"]
        covered += row.lower <= exact <= row.upper
    assert abs(covered / count - level) < 4 * math.sqrt(level * (1 - level) / count)


@pytest.mark.parametrize("count", [100, MANY])
@pytest.mark.parametrize("reference", [None, "0.9"])
def test_all_intervals_hold_together(reference, count):
    """Four models, two as good as each other, the reference named or picked by the data."""
    held, rows, scales = 0, 0, (0.9, 1.0, 1.1, 1.0001)
    for _ in repeats(count):
        found = compare(gaussians(100, scales), reference=reference)
        exact = {str(s): expected(s) - expected(float(found.reference)) for s in scales}
        inside = [r.lower <= exact[r.name] <= r.upper for r in found.rows if r.name != found.reference]
        held, rows = held + all(inside), rows + sum(inside)
    assert held / count > 0.95 - 4 * math.sqrt(0.95 * 0.05 / count)
    assert rows / count < 3.0  # they do miss, now and then


def test_the_error_of_the_data_cancels():
    """Two equal models up to Monte Carlo noise: the interval is as wide as that noise, not as the spread of the data."""
    data = 20 * torch.randn(500, dtype=torch.float64)
    found = compare({"a": values(data, 0.1), "b": values(data, 0.2)}, reference="a")["b"]
    exact = math.hypot(0.1, 0.2) / math.sqrt(500)
    assert found.mc_error == pytest.approx(exact)
    assert found.std_error == pytest.approx(exact, rel=4 / math.sqrt(1000))
    assert found.bias == pytest.approx((0.1**2 - 0.2**2) / 2)


def test_the_monte_carlo_error_is_the_scatter_over_seeds():
    x = ORACLE.draw(30)
    guides = {"a": ORACLE.guide(0.2, 1.1), "b": ORACLE.guide(0.0, 1.2)}
    found = []
    for seed in range(40):
        pyro.set_rng_seed(seed)
        estimates = {name: importance_sampling(ORACLE.model, g, x, num_samples=300) for name, g in guides.items()}
        found.append(compare(estimates, reference="a")["b"])
    differences = torch.tensor([row.difference for row in found])
    reported = [row.mc_error for row in found if row.mc_error is not None]
    assert len(reported) > 20
    # The relative error of a standard deviation of n values is 1 / sqrt(2 n).
    assert float(differences.std()) == pytest.approx(sum(reported) / len(reported), rel=4 / math.sqrt(80))
    assert abs(float(differences.mean())) < 4 * float(differences.std()) / math.sqrt(40)


def test_an_unknown_error_stays_unknown_and_is_reported():
    x = ORACLE.draw(50)
    estimates = {
        "good": importance_sampling(ORACLE.model, ORACLE.guide(), x, num_samples=200),
        "narrow": importance_sampling(ORACLE.model, ORACLE.guide(0.0, 0.4), x, num_samples=200),
    }
    found = compare(estimates)
    row = found["narrow"]
    assert (row.mc_error, row.bias) == (None, None)
    assert row.unreliable == int((~estimates["narrow"].reliable).sum()) > 0
    assert f"narrow: log p(x) of {row.unreliable} of 50 data cannot be trusted" in found.table()
    assert "unknown" in found.table()
    assert "good: for" not in found.table()


def test_the_best_comes_first_and_shares_add_up():
    torch.manual_seed(0)
    found = compare(gaussians(400, (1.5, 1.0, 2.0), 0.0))
    assert [row.name for row in found.rows] == ["1.0", "1.5", "2.0"]
    assert found.reference == "1.0"
    best = found["1.0"]
    assert (best.difference, best.lower, best.upper, best.mc_error, best.better) == (0.0, 0.0, 0.0, 0.0, 0.5)
    share = stats.chi2.cdf(5 * math.log(2.0**2) / (1 - 2.0**-2), 5)  # |x|^2 up to where the two densities are equal
    assert found["2.0"].better == pytest.approx(1 - share, abs=4 * math.sqrt(share * (1 - share) / 400))
    assert sum(row.weight for row in found.rows) == pytest.approx(1)
    for name in ("1.5", "2.0"):
        exact = expected(float(name)) - expected(1.0)
        assert found[name].lower < exact < found[name].upper < 0


def test_two_models_by_bisection():
    """The derivative of the mean log score of w p + (1 - w) q is zero at the weight."""
    generator = torch.Generator().manual_seed(0)
    log_px = 3 * torch.randn(2, 300, dtype=torch.float64, generator=generator) - 900
    ratio = (log_px[1] - log_px[0]).exp()
    root = optimize.brentq(lambda w: float(((1 - ratio) / (w + (1 - w) * ratio)).mean()), 1e-9, 1 - 1e-9, xtol=1e-13)
    assert float(stacking_weights(log_px)[0]) == pytest.approx(root, abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 30.0, 1000.0])
@pytest.mark.parametrize("models", [1, 3, 10])
def test_stacking_weights_are_the_best_by_certificate(models, spread):
    generator = torch.Generator().manual_seed(models)
    log_px = spread * torch.randn(models, 200, dtype=torch.float64, generator=generator) - 1e4
    weights = stacking_weights(log_px)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.min()) > 0
    assert abs(stacking_gap(log_px, weights)) < 1e-6
    if models > 1 and spread > 0:
        assert stacking_gap(log_px, torch.full((models,), 1 / models)) > 1e-4


def test_stacking_finds_the_mixture_that_made_the_data():
    """Half of the data from each of two normals: the weights are the shares, within their error."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(4000, generator=generator, dtype=torch.float64) < 0.3
    x = torch.randn(4000, generator=generator, dtype=torch.float64) + torch.where(share, 4.0, 0.0)
    locs = torch.tensor([0.0, 4.0, 40.0], dtype=torch.float64)[:, None]
    weights = stacking_weights(torch.distributions.Normal(locs, 1.0).log_prob(x))
    error = 4 * math.sqrt(0.3 * 0.7 / 4000) * 1.2
    assert weights.tolist() == pytest.approx([0.7, 0.3, 0.0], abs=error)


def test_the_stacked_mixture_is_at_least_as_good_as_the_best():
    torch.manual_seed(0)
    found = compare({"a": values(torch.randn(100).double()), "b": values(torch.randn(100).double())})
    assert found.stacked > max(row.log_px for row in found.rows) + 0.01


def test_arviz_takes_the_values_as_they_are():
    torch.manual_seed(0)
    found = compare(gaussians(300, (1.0, 0.9, 1.3)))
    arviz = import_arviz()
    total, sign = ("elpd", 1) if is_arviz_1() else ("elpd_loo", -1)  # 0.x gives the loss to the best
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = arviz.compare(found.to_arviz(), **({"round_to": "none"} if is_arviz_1() else {}))
    assert list(theirs.index) == [row.name for row in found.rows]
    for row in found.rows:
        assert theirs["weight"][row.name] == pytest.approx(row.weight, abs=2e-3)
        assert theirs[total][row.name] == pytest.approx(300 * row.log_px)
        assert theirs["elpd_diff"][row.name] == pytest.approx(sign * 300 * row.difference)
        assert theirs["dse"][row.name] == pytest.approx(300 * row.std_error, rel=0.01)


def estimate(num: int, log_px: float = 0.0) -> Estimate:
    return Estimate.from_weights(
        torch.randn(30, num, dtype=torch.float64) + log_px, torch.zeros(30, num, dtype=torch.float64)
    )


def test_what_cannot_be_compared_is_refused():
    a, b = estimate(5), estimate(6)
    with pytest.raises(ValueError, match="expected at least two to compare, got 1"):
        compare({"a": a})
    with pytest.raises(ValueError, match="expected the same data, got 5 for 'a' and 6 for 'b'"):
        compare({"a": a, "b": b})
    with pytest.raises(ValueError, match="one test set with one binarization, got x for 'a' and y for 'b'"):
        compare({"a": a, "b": a}, data_keys={"a": "x", "b": "y"})
    with pytest.raises(ValueError, match="data_keys: expected a key for each estimate, got none for 'b'"):
        compare({"a": a, "b": a}, data_keys={"a": "x"})
    with pytest.raises(ValueError, match="unknown reference 'c': expected one of a, b"):
        compare({"a": a, "b": a}, reference="c")
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1, got 95"):
        compare({"a": a, "b": a}, level=95)
    with pytest.raises(ValueError, match="at least two data .* got 1"):
        compare({"a": estimate(1), "b": estimate(1)})
    with pytest.raises(ValueError, match="log p\\(x\\) of 'b': expected finite values, got 5 infinite or NaN values"):
        compare({"a": a, "b": estimate(5, -math.inf)})
    with pytest.raises(ValueError, match="unknown model 'c'"):
        compare({"a": a, "b": a})["c"]


def test_a_model_against_itself():
    a = estimate(5)
    row = compare({"a": a, "b": a}, data_keys={"a": "x", "b": "x"}, reference="a")["b"]
    assert (row.difference, row.std_error, row.better, row.weight) == (0.0, 0.0, 0.5, pytest.approx(0.5))
