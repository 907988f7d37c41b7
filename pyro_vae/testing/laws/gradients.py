"""The law ``gradients``: pathwise and score-function estimates of a gradient agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.laws.derivatives import DETACHED
from pyro_vae.testing.numerics.statistics import student_p
from pyro_vae.testing.subject import Scores, Subject, Values, latent_sites, parameters

LAW = "gradients"
#: Key: name of a parameter with P entries, and the comparison, ``PAIR`` or ``NULL``. Value: vectors with expectation 0, shape
#: ``(repeats, P)``, and the typical norm of the compared gradients.
Differences = dict[tuple[str, str], tuple[Tensor, float]]
DRAWS = 4
PAIR, NULL = "pathwise minus score-function gradient", "gradient of E_q[log q] at fixed draws"
UNLIKE = "a guide whose draws are not from the density it scores"


def check_gradients(subject: Subject, repeats: int, ledger: Ledger) -> None:
    r"""Compare two unbiased estimates of :math:`\nabla_\phi E_q[\log w]`.

    The pathwise estimate is :math:`\nabla \log w(z(\phi))`. The score-function estimate keeps the K draws
    :math:`z_k` fixed, :math:`\frac1K \sum_k (\log w_k - \overline{\log w}_{-k}) \nabla \log q_k + \frac1K \sum_k \nabla \log
    w_k`, where :math:`\overline{\log w}_{-k}` is the mean over the other draws. Both are computed ``repeats`` times. The first
    half of the repeats finds the direction in which the two estimates differ most; the second half tests the difference in
    this direction. :math:`E_q[\nabla \log q] = 0` is tested in the same way.
    """
    sites = latent_sites(subject.guide_trace)
    params = {n: p for n, p in parameters(subject.guide_trace).items() if p.requires_grad}
    if any(s["infer"].get("is_auxiliary") for s in sites.values()):
        ledger.skips(LAW, "the estimators", "the guide draws an auxiliary site, and computes other sites from it")
        return
    if not params:
        ledger.skips(LAW, "the estimators", "the guide has no parameters")
        return
    moves = any(s["fn"].has_rsample for s in sites.values())
    if not moves:
        ledger.skips(LAW, "the estimators", "the guide has no reparameterized site")
    found = _differences(subject, params, repeats)

    @cache
    def fresh() -> Differences:
        with torch.enable_grad():
            return _differences(subject, params, repeats)

    for (name, what), (rows, size) in found.items():
        if what == NULL or moves:
            mean, error, p_value = _mean_test(rows, size)
            figures = f"{what}, in the direction furthest from 0, is {mean:.4g} +- {error:.2g}"
            causes = UNLIKE if what == NULL else DETACHED
            again = partial(_fresh_p, fresh, (name, what))
            ledger.tests(LAW, f"parameter {name!r}", p_value, figures, causes, again)


def _differences(subject: Subject, params: dict[str, Tensor], repeats: int) -> Differences:
    """Estimate both gradients ``repeats`` times; return their differences."""
    estimates = [_estimates(subject, params) for _ in range(repeats)]
    found = {}
    for i, name in enumerate(params):
        paths, scores, null = (torch.stack([estimate[part][i] for estimate in estimates]) for part in range(3))
        size = float(torch.maximum(paths.square().sum(1).mean(), scores.square().sum(1).mean()).sqrt())
        found[name, PAIR] = paths - scores, size
        found[name, NULL] = null, float(null.norm(dim=1).mean())
    return found


def _fresh_p(fresh: Callable[[], Differences], key: tuple[str, str]) -> float:
    return _mean_test(*fresh()[key])[2]


def _mean_test(rows: Tensor, size: float) -> tuple[float, float, float]:
    """Test that the rows have mean 0 in their mean direction.

    The first half of the rows gives the direction, the second half is tested. ``size`` is the typical norm of a gradient: a
    mean below 1e-4 of it counts as rounding error.

    Returns:
        Mean along the direction, its standard error, and the p-value.
    """
    half = len(rows) // 2
    direction = rows[:half].mean(0)
    values = rows[half:] @ (direction / direction.norm().clamp(min=1e-300))
    mean, error = float(values.mean()), float(values.std() / (len(rows) - half) ** 0.5)
    rounding = abs(mean) <= 1e-4 * size
    return mean, error, 1.0 if rounding else student_p(values)


def _estimates(subject: Subject, params: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    r"""Estimate the gradient of E_q[log w] from one set of guide draws.

    Returns:
        Three lists, each with a flat float64 vector for each parameter: the pathwise gradient, the score-function gradient,
        and the mean of :math:`\nabla \log q`.
    """
    paths: list[Tensor] = []
    at: list[Scores] = []
    for _ in range(DRAWS):
        loss, values = _pathwise(subject)
        paths.append(loss / DRAWS)
        at.append(subject.evaluate({n: v.detach() for n, v in values.items()}))
    log_w = torch.stack([s.log_w for s in at])
    log_q = torch.stack([sum(s.guide.values(), torch.zeros(())) for s in at])
    signal = (log_w - log_w.mean(0)).detach() / (DRAWS - 1)
    leaves = list(params.values())
    score = _flat((signal * log_q).sum() + log_w.sum() / DRAWS, leaves)
    return _flat(torch.stack(paths).sum(), leaves), score, _flat(log_q.sum() / DRAWS, leaves)


def _pathwise(subject: Subject) -> tuple[Tensor, Values]:
    """Draw from the guide; return a differentiable estimate and the latent values.

    The estimate is log w, summed over the data, plus a score-function term for each site without reparameterized draws.
    """
    guide_trace = subject.traced(subject.guide, subject.call, subject.index)
    sites = latent_sites(guide_trace)
    values = {n: s["value"] for n, s in sites.items()}
    scores = subject.score(subject.traced(subject.model, subject.call, subject.index | values), guide_trace)
    loss = scores.log_w.sum()
    for name, site in sites.items():
        if not site["fn"].has_rsample:
            loss = loss + (scores.log_w.detach() * scores.guide[name]).sum()
    return loss, values


def _flat(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros(leaf.numel(), dtype=torch.float64) for leaf in leaves]
    grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    pairs = zip(grads, leaves, strict=True)
    return [(torch.zeros_like(leaf) if g is None else g).detach().double().flatten() for g, leaf in pairs]
