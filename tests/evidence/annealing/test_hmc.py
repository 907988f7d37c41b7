from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_vae.evidence.annealing.hmc import State, evaluation, move
from pyro_vae.evidence.annealing.step_size import NUM_KNOTS, Tuning
from tests.oracles import within

DOUBLE = {"dtype": torch.float64}


def gaussian(scale: Tensor) -> Callable[[Tensor], State]:
    """a of N(0, I), and b such that a + b is N(0, diag scale^2)."""

    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        base = -u.square().sum(-1) / 2
        return base, -(u / scale).square().sum(-1) / 2 - base

    return evaluation(terms)


@pytest.mark.parametrize("size", [0.5, 2.0, 2.6])
def test_a_move_leaves_its_density_as_it_is(size):
    """Draws of N(0, diag(1, 0.25)) stay such draws, whether moves are taken or refused."""
    scale = torch.tensor([1.0, 0.5], **DOUBLE)
    evaluate, num = gaussian(scale), 40_000
    state = evaluate(torch.randn(num, 1, 2, **DOUBLE) * scale)
    taken = []
    for _ in range(3):
        state, probability = move(evaluate, state, 1.0, torch.tensor([size]), scale, 3)
        taken.append(float(probability.mean()))
    u = state.u[:, 0] / scale
    assert within(u.mean(0), 0.0, 1 / math.sqrt(num))
    assert within(u.square().mean(0), 1.0, math.sqrt(2 / num))
    assert (taken[0] > 0.95) == (size == 0.5)
    assert taken[0] > 0.2


def test_each_step_evaluates_one_gradient_and_keeps_what_is_known():
    calls = []
    scale = torch.ones(2, **DOUBLE)
    evaluate = gaussian(scale)

    def counted(u: Tensor) -> State:
        calls.append(u.shape)
        return evaluate(u)

    start = evaluate(torch.randn(50, 3, 2, **DOUBLE))
    state, _ = move(counted, start, 0.5, torch.full((3,), 2.2), scale, 7)
    assert calls == [(50, 3, 2)] * 7
    again = evaluate(state.u)
    for ours, theirs in zip(state, again, strict=True):
        torch.testing.assert_close(ours, theirs)
    moved = (state.u != start.u).any(-1)
    assert 0 < int(moved.sum()) < 150


def test_a_chain_that_leaves_the_numbers_stays_where_it_was():
    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        return u.sum(-1) * 0, -u.pow(4).sum(-1)

    state = evaluation(terms)(torch.ones(4, 2, 1, **DOUBLE))
    after, probability = move(evaluation(terms), state, 1.0, torch.tensor([1.0, 1e9]), torch.ones(1, **DOUBLE), 20)
    assert float(probability[:, 1].max()) == 0.0
    assert torch.equal(after.u[:, 1], state.u[:, 1])
    assert bool(after.u.isfinite().all())


def test_tuning_lies_on_lines_between_knots():
    logs = torch.arange(NUM_KNOTS, **DOUBLE)[:, None] * torch.tensor([1.0, 2.0], **DOUBLE)
    tuning = Tuning(logs, torch.tensor([1.0, 4.0]), torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(tuning.step_size(0.5).log(), logs[-1] / 2)
    torch.testing.assert_close(tuning.step_size(1.0).log(), logs[-1])
    torch.testing.assert_close(tuning.scale(0.0), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(tuning.scale(1.0), torch.tensor([0.5, 2.0]))
