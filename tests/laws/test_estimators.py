"""Every estimator of the command line against closed forms: a new one is a row in ``ESTIMATORS``, and is tested here."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.evidence import Bracket, Estimate
from pyro_vae.runs.evaluation.estimators import ESTIMATORS, Estimation, estimate_batch
from tests.oracles import LinearGaussian, within

ORACLE = LinearGaussian(data_dim=3, latent_dim=2, scale=1.5)
DATA = 200
OPTIONS = {"num_samples": 1000, "num_chains": 16, "num_steps": 30, "refine_steps": 20}
FEW = {"num_samples": 60, "num_chains": 5, "num_steps": 4, "refine_steps": 3}
#: Another value of each option.
CHANGED = {
    "num_samples": 70,
    "target_se": 0.05,
    "max_samples": 130,
    "num_chains": 6,
    "num_steps": 5,
    "start": "prior",
    "path": "geometric",
    "refine_steps": 7,
}
Found = Estimate | Bracket


class Subject(nn.Module):
    """The oracle's model, with a guide that is shifted and too wide, so that no estimator is exact."""

    def model(self, x: Tensor) -> None:
        ORACLE.model(x)

    def guide(self, x: Tensor) -> None:
        ORACLE.guide(0.3, 1.2)(x)


def estimate(name: str, num_data: int, seed: int = 3, **options: object) -> Found:
    how = Estimation(name, compile=False, **options)
    return estimate_batch(Subject(), (ORACLE.draw(num_data),), how, seed)


#: Each estimator once.
once = functools.lru_cache(maxsize=None)(lambda name: estimate(name, DATA, **OPTIONS))
few = functools.lru_cache(maxsize=None)(lambda name: estimate(name, 5, **FEW))


def bounds(found: Found) -> list[tuple[int, Tensor, Estimate]]:
    """Each bound: -1 or 1 for its side, its errors against log p(x), and the estimate that states its standard error."""
    if isinstance(found, Bracket):
        exact = ORACLE.log_px(found.args[0])
        return [(-1, found.lower.log_px - exact, found.lower), (1, found.upper.log_px - exact, found.upper.inverse)]
    return [(-1, found.log_px - ORACLE.log_px(ORACLE.draw(len(found.log_px))), found)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_means_are_exact_within_the_stated_error(name):
    for side, errors, stated in bounds(once(name)):
        good = stated.reliable
        assert float(good.double().mean()) > 0.9
        unbiased = errors + side * stated.bias  # the bias that is stated is that of a lower bound
        pooled = float(stated.std_error[good].square().sum().sqrt() / good.sum())
        assert within(unbiased[good].mean(), 0.0, pooled)
        assert pooled < 0.01


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_stated_error_is_the_scatter(name):
    """The mean square of errors in standard errors is 1; from 16 chains each, whose errors are too small, up to 2.5."""
    for _, errors, stated in bounds(once(name)):
        scatter = float((errors / stated.std_error)[stated.reliable].square().mean())
        slack = 4 * math.sqrt(2 / DATA)
        assert 1 - slack < scatter < (2.5 if ESTIMATORS[name].kind == "chains" else 1 + slack)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_direction_of_each_bound(name):
    """The mean of p-hat is p(x) from below, and that of 1 / p-hat is 1 / p(x) from above, whatever is reliable."""
    for side, errors, _ in bounds(once(name)):
        ratios = (-side * errors).exp()
        assert within(ratios.mean(), 1.0, ratios.std() / math.sqrt(DATA))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_elbo_is_a_lower_bound_and_the_sum_of_its_parts(name):
    for _, _, stated in bounds(once(name)):
        torch.testing.assert_close(stated.elbo, -stated.rate - stated.distortion)
        assert bool((stated.elbo < stated.log_px).all())


def figures(found: Found) -> Tensor:
    """All that an estimate depends on, as one vector."""
    return torch.cat(
        [torch.cat([errors, stated.draws, torch.tensor([stated.num_pilot])]) for _, errors, stated in bounds(found)]
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_seed_decides(name):
    assert torch.equal(figures(estimate(name, 5, **FEW)), figures(few(name)))
    assert not torch.equal(figures(estimate(name, 5, seed=4, **FEW)), figures(few(name)))


@pytest.mark.thin(3)
@pytest.mark.parametrize("option", CHANGED)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_reads_the_options_of_its_row_and_no_others(name, option):
    known = ESTIMATORS[name].options
    if option == "target_se" and option not in known:
        with pytest.raises(ValueError, match="target_se: needs --estimator"):
            estimate(name, 5, **FEW, target_se=0.05)
        return
    # The most samples are asked for under a target alone.
    usual = FEW | ({"target_se": 0.02} if option == "max_samples" and "target_se" in known else {})
    before = few(name) if usual == FEW else estimate(name, 5, **usual)
    after = estimate(name, 5, **usual | {option: CHANGED[option]})
    assert torch.equal(figures(before), figures(after)) == (option not in known)


def test_every_option_is_tested():
    assert {option for row in ESTIMATORS.values() for option in row.options} == CHANGED.keys()
