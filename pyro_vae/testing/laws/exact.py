"""The law ``exact``: the importance weights agree with a known log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.numerics.statistics import markov_p, student_p
from pyro_vae.testing.subject import Call, Subject

LAW = "exact"
Exact = Tensor | Callable[..., Any]
DRAWS = 48
CAUSES = "a prior, likelihood or parameter that differs from the one in exact= (a scale, a bias), or a decoder that ignores z"


def check_exact(subject: Subject, exact: Exact, against: str | None, num_samples: int, ledger: Ledger) -> None:
    r"""Compare the importance weights with the known log p(x).

    For data :math:`x_i` with K weights :math:`w_{ki}` each, the product
    :math:`\prod_i \frac1K \sum_k w_{ki} / p(x_i)` has mean 1. By Markov's inequality this product exceeds 1/a with
    probability at most a, however heavy its tail. The given data are tested. If ``exact`` is a function, data drawn from
    the model are tested too.

    Args:
        subject: The program.
        exact: log p(x) of each datum, shape ``(B,)``, nats, or a function of the program's arguments that returns it.
        against: Reason why data cannot be simulated; None if they can.
        num_samples: Number of simulated data.
        ledger: Collects the findings.

    Raises:
        ValueError: If ``exact`` does not have shape ``(B,)``.
    """
    size = subject.data_plate.size
    excess = _log_excess(subject, subject.call, exact)
    _test_excess(excess, "the given data", ledger)
    _check_mean(subject, exact, excess, ledger)
    if not callable(exact):
        ledger.skips(LAW, "simulated data", "exact= is a tensor; pass a function of the arguments")
    elif against is not None:
        ledger.skips(LAW, "simulated data", against)
    else:
        _check_simulated(subject, exact, min(16, math.ceil(num_samples / 2 / size)), ledger)


def _check_simulated(subject: Subject, exact: Exact, rounds: int, ledger: Ledger) -> None:
    r"""Test the importance weights of data that are drawn from the model.

    The first test uses Markov's inequality, as for the given data. The second is a t test of the equation

    .. math:: E_{p(z|x)}[1/(1+\rho)] = E_q[\rho/(1+\rho)], \qquad \rho = w / p(x)

    If log p(x) is right, both sides are :math:`\int pq / (p + q)\, dz`, where p is the posterior. The averaged terms lie
    between 0 and 1, however heavy the tail of w.
    """
    excess, balance = _simulated(subject, exact, rounds)
    where = "data drawn from the model"
    _test_excess(excess, where, ledger)
    p_value = student_p(balance) if float(balance.abs().max()) > 1e-3 else 1.0
    figures = f"1/(1+w/p) at posterior draws minus (w/p)/(1+w/p) at guide draws is {float(balance.mean()):.3g}"
    figures = f"{figures}, averaged over {len(balance)} data, expected 0"

    def again() -> float:
        return student_p(_simulated(subject, exact, rounds)[1])

    ledger.tests(LAW, f"{where}, both sides", p_value, figures, CAUSES, again)


def _simulated(subject: Subject, exact: Exact, rounds: int) -> tuple[Tensor, Tensor]:
    """Simulate several batches of data and evaluate their importance weights.

    Returns:
        log w - log p(x) of K guide draws, shape ``(K, rounds * B)``, nats; and, with rho = w / p(x), the term
        1/(1+rho) at the posterior draw minus the mean of rho/(1+rho) at the guide draws, shape ``(rounds * B,)``.
    """
    parts, balance = [], []
    for _ in range(rounds):
        call, values, _ = subject.simulate()
        parts.append(_log_excess(subject, call, exact))
        own = subject.evaluate(values, call).log_w.double() - _known(subject, call, exact)
        balance.append(torch.sigmoid(-own) - torch.sigmoid(parts[-1]).mean(0))
    return torch.cat(parts, 1), torch.cat(balance)


def _known(subject: Subject, call: Call, exact: Exact) -> Tensor:
    """Return the known log p(x) of each datum, shape ``(B,)``, nats."""
    known = torch.as_tensor(exact(*call.args, **call.kwargs) if callable(exact) else exact).detach().double()
    if subject.picked is not None and known.dim() == 1 and len(known) > int(subject.picked.max()):
        known = known[subject.picked]
    if known.shape != (subject.data_plate.size,):
        raise ValueError(
            f"exact: expected log p(x) of each datum, shape ({subject.data_plate.size},), got {tuple(known.shape)}."
        )
    return known


def _log_excess(subject: Subject, call: Call, exact: Exact) -> Tensor:
    """Return the log of w / p(x) for K guide draws.

    Returns:
        log w - log p(x), shape ``(K, B)``, nats.
    """
    log_w = torch.stack([subject.draw(call)[1].log_w.double() for _ in range(DRAWS)])
    return log_w - _known(subject, call, exact)


def _test_excess(excess: Tensor, where: str, ledger: Ledger) -> None:
    log_ratio = excess.logsumexp(0) - math.log(len(excess))
    rounding = 1e-5 * float(log_ratio.abs().sum()) + 1e-6 * len(log_ratio)
    p_value = 1.0 if float(log_ratio.sum()) <= rounding else markov_p(log_ratio)
    figures = f"the log of the mean of w / p(x) over {len(excess)} draws is {float(log_ratio.mean()):.4g}"
    figures = f"{figures}, averaged over {len(log_ratio)} data, and should not be far above 0"
    ledger.tests(LAW, where, p_value, figures, CAUSES)


def _check_mean(subject: Subject, exact: Exact, excess: Tensor, ledger: Ledger) -> None:
    """Test that w / p(x) has mean 1.

    The two-sided t test is skipped if a few weights dominate the mean.
    """
    weights = (excess - excess.max(0).values).exp()
    effective = weights.sum(0).square() / weights.square().sum(0)
    where = "the given data, both sides"
    if float(effective.min()) < 0.3 * len(excess):
        why = f"a datum's {len(excess)} draws have an effective size of {float(effective.min()):.0f}, too few for a t test"
        ledger.skips(LAW, where, why)
        return
    ratio = excess.clamp(max=700).exp().mean(1)
    p_value = 1.0 if abs(float(ratio.mean()) - 1) < 0.02 else student_p(ratio, 1.0)

    def again() -> float:
        return student_p(_log_excess(subject, subject.call, exact).clamp(max=700).exp().mean(1), 1.0)

    causes = f"{CAUSES}; or a guide that misses a part of the posterior"
    figures = f"the mean of w / p(x) is {float(ratio.mean()):.4g}, expected 1"
    ledger.tests(LAW, where, p_value, figures, causes, again)
