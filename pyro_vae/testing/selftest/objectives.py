"""Self-test of the objectives: each bound and gradient beside its expectation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.kl.floors import FreeBits, MinimumRate
from pyro_vae.inference.kl.targets import Capacity, TargetRate
from pyro_vae.inference.kl.total_correlation import TotalCorrelation, batch_weights
from pyro_vae.inference.objectives.registry import OBJECTIVES, elbo
from pyro_vae.testing.selftest.linear_gaussian import K, Line, LinearGaussianVAE, hermite, slopes, worst
from pyro_vae.testing.selftest.mixtures import SIZE, Labelled, batches, rate_parts

#: Number of draws K of a self-normalized gradient. Its relative bias is about 1/K, so it is exact in the limit of many draws.
MANY = 2000
#: Weights of the three parts of the rate in the loss: I(x; z), the total correlation, and the KL of the latent units.
WEIGHTS = (2.0, 6.0, 3.0)
Reduce = Callable[[Tensor], Tensor]


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Return the log of the mean weight over dimension 0, the draws."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def _mean(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


def _thermodynamic(log_w: Tensor) -> Tensor:
    points = elbo("tvo", num_particles=K).points
    return torch.stack([(b - a) * ((a * log_w).softmax(0) * log_w).sum(0) for a, b in pairwise(points)]).sum(0)


@dataclass(frozen=True)
class Case:
    """An objective's definition, from which its expectations are computed.

    Attributes:
        value: Function that computes the bound from the log weights of the draws.
        draws: Number of draws that ``value`` takes.
        options: Options with which the objective is made.
        follows: Two pairs (bound, number of draws): the model is trained by the gradient of the first bound, the guide by
            that of the second. None: ``value`` trains both.
        kind: Kind of the guide, see :class:`LinearGaussianVAE`.
    """

    value: Reduce
    draws: int = K
    options: tuple[tuple[str, Any], ...] = (("num_particles", K),)
    follows: tuple[tuple[Reduce, int], tuple[Reduce, int]] | None = None
    kind: Literal["full", "units", "score"] = "full"


CASES: dict[str, Case] = {
    "trace": Case(_mean, 1, ()),
    "trace, score function": Case(_mean, 1, (), kind="score"),
    "mean-field": Case(_mean, 1, (), kind="units"),
    "graph": Case(_mean, 1, ()),
    "graph, score function": Case(_mean, 1, (), kind="score"),
    "iwae": Case(log_mean_exp),
    "vimco": Case(log_mean_exp, kind="score"),
    "renyi": Case(lambda w: 2 * log_mean_exp(w / 2), options=(("alpha", 0.5), ("num_particles", K))),
    "dreg": Case(log_mean_exp),
    "stl": Case(_mean, 1, ()),
    "miwae": Case(log_mean_exp, options=(("num_groups", 3), ("num_particles", K))),
    "ciwae": Case(lambda w: 0.5 * _mean(w) + 0.5 * log_mean_exp(w)),
    "piwae": Case(_mean, 1, (("num_groups", K), ("num_particles", 1)), follows=((log_mean_exp, K), (_mean, 1))),
    "rws": Case(log_mean_exp),
    "tvo": Case(_thermodynamic),
}


def objectives(x: Tensor, rounds: int) -> Iterator[Line]:
    """Compare each objective's bound and gradient with their exact expectations."""
    for name, case in CASES.items():
        if name.split(",")[0] in OBJECTIVES:
            yield from plain(name, case, x, rounds)
    if "enum" in OBJECTIVES:
        yield from enumerated(x, rounds)
    yield from penalties(x, rounds)
    yield from total_correlations(x, rounds)


def plain(name: str, case: Case, x: Tensor, rounds: int) -> Iterator[Line]:
    """Compare one objective on the linear-Gaussian VAE with its expectations."""
    reference = LinearGaussianVAE(kind=case.kind)
    key = name.split(",")[0]
    objective = elbo(key, **dict(case.options))
    exact = reference.expected(case.value, case.draws, x)
    yield _bound(name, objective, reference, exact.detach(), x, rounds)
    if OBJECTIVES[key].self_normalized:
        yield _in_the_limit(name, reference, x)
        return

    def loss() -> Tensor:
        return objective.differentiable_loss(reference.model, reference.guide, x)

    own = [reference.shift, reference.log_stretch]
    if case.follows is None:
        yield worst(slopes(name, "gradient", -exact.sum(), loss, [*reference.parameters()], rounds))
        return
    for whose, leaves, (value, draws) in zip(
        ("model", "guide"), ([*reference.vae.parameters()], own), case.follows, strict=True
    ):
        expected = -reference.expected(value, draws, x).sum()
        yield worst(slopes(name, f"gradient of the {whose}", expected, loss, leaves, rounds))


def _bound(name: str, objective: Any, program: Any, exact: Tensor, x: Tensor, rounds: int) -> Line:
    with torch.no_grad():
        found = torch.stack([objective.bound(program.model, program.guide, x) for _ in range(rounds)])
    off = found - exact
    return Line(
        name, "bound, nats", float(exact.mean()), float(found.mean()), float(off.std()) / math.sqrt(off.numel())
    )


def _in_the_limit(name: str, reference: LinearGaussianVAE, x: Tensor) -> Line:
    """Compare a gradient from many draws with its limit for infinitely many."""
    objective = elbo(name, num_particles=MANY)
    if name == "tvo":
        limit = -thermodynamic(reference, x, objective.points).sum()
    else:  # the model climbs log p(x), the guide descends KL(p || q)
        with torch.no_grad():
            p = reference.vae.exact_posterior(x)
        limit = -(reference.vae.log_px(x) - torch.distributions.kl_divergence(p, reference.q(x))).sum()

    def loss() -> Tensor:
        return objective.differentiable_loss(reference.model, reference.guide, x)

    return worst(slopes(f"{name}, {MANY} draws", "gradient", limit, loss, [*reference.parameters()], 100))


def thermodynamic(reference: LinearGaussianVAE, x: Tensor, points: list[float]) -> Tensor:
    r"""Return the exact thermodynamic bound of ``tvo``, shape ``(B,)``, nats.

    .. math:: \sum_i (t_{i+1} - t_i)\, E_{\pi_{t_i}}[\log w], \quad \pi_t \propto q^{1-t} p(x, z)^t

    The :math:`t_i` are ``points``. :math:`\pi_t` is a normal with precision :math:`(1 - t) P_q + t P`, where :math:`P_q` and
    P are the precisions of the guide and the posterior. Its mean is the average of their means, weighted by
    :math:`(1 - t) P_q` and :math:`t P`. Since log w is quadratic in z, the quadrature is exact.
    """
    ends = reference.q(x), reference.vae.exact_posterior(x)
    grid, shares = hermite(2, 4)
    total = torch.zeros(len(x), dtype=torch.float64)
    for start, end in pairwise(points):
        parts = [(share, p.precision_matrix, p.mean) for share, p in zip((1 - start, start), ends, strict=True)]
        precision = sum(share * part for share, part, _ in parts)
        pull = sum(share * (part @ mean[..., None]) for share, part, mean in parts)
        covariance = torch.linalg.inv(precision)
        root = torch.linalg.cholesky(covariance)
        z = ((covariance @ pull) + root @ grid[:, None, :, None]).squeeze(-1)
        log_w = reference.vae.prior().log_prob(z) + reference.vae.decode(z).log_prob(x) - ends[0].log_prob(z)
        total = total + (end - start) * (shares[:, None] * log_w).sum(0)
    return total


def enumerated(x: Tensor, rounds: int) -> Iterator[Line]:
    """Compare ``enum`` with the exact ELBO of a VAE with three labels."""
    labelled, objective, name = Labelled(), elbo("enum"), "enum, three labels"
    exact = labelled.elbo(x)
    yield _bound(name, objective, labelled, exact.detach(), x, rounds)

    def loss() -> Tensor:
        return objective.differentiable_loss(labelled.model, labelled.guide, x)

    yield worst(slopes(name, "gradient", -exact.sum(), loss, [*labelled.parameters()], rounds))


def penalties(x: Tensor, rounds: int) -> Iterator[Line]:
    """Compare losses under KL control with their exact expectations.

    The expectation is the distortion plus a penalty, which is a function of the exact rates.
    """
    for key in ("trace", "mean-field"):
        reference = LinearGaussianVAE(kind="units")
        pair = scale_kl_pair(reference.model, reference.guide, 4.0)
        exact = _distortion(reference, x) + 4 * reference.rate(x).sum()
        yield from _losses(f"scale_kl_pair, {key}", elbo(key), pair, exact, reference, x, rounds)
    reference = LinearGaussianVAE(kind="units")
    pair = reference.model, reference.guide
    rates = reference.rates(x).detach().mean(0)
    floor, above = float(rates.mean()), float(rates.sum()) + 0.7
    # The first weight of TargetRate's controller is beta_min + Kp / (1 + e^0.7) - 0.7 Ki, since the rate is 0.7 nats too low.
    beta = 2.0 + 2.0 / (1 + math.exp(0.7)) - 0.3 * 0.7
    cases: list[tuple[str, Any, Callable[[Tensor], Tensor]]] = [
        ("FreeBits", FreeBits(elbo("mean-field"), floor), lambda r: r.clamp(min=floor).sum()),
        ("MinimumRate", MinimumRate(elbo("mean-field"), above), lambda r: r.sum().clamp(min=above)),
        ("Capacity", Capacity(elbo("mean-field"), above, weight=5.0), lambda r: 5 * (above - r.sum())),
        ("TargetRate", TargetRate(elbo("mean-field"), above, 2.0, 0.3, beta_min=2.0), lambda r: beta * r.sum()),
    ]
    for name, objective, penalty in cases:
        exact = _distortion(reference, x) + len(x) * penalty(reference.rates(x).mean(0))
        yield from _losses(name, objective, pair, exact, reference, x, rounds)


def _distortion(reference: LinearGaussianVAE, x: Tensor) -> Tensor:
    return -(reference.elbo(x) + reference.rate(x)).sum()


def _losses(
    name: str,
    objective: Any,
    pair: tuple[Any, Any],
    exact: Tensor,
    reference: LinearGaussianVAE,
    x: Tensor,
    rounds: int,
) -> Iterator[Line]:
    found: list[float] = []
    state = objective.state_dict() if hasattr(objective, "state_dict") else {}
    state = {key: value.clone() for key, value in state.items()}

    def loss() -> Tensor:
        if name == "Capacity":  # set the last training step: in the first, the capacity is 0
            objective.load_state_dict({"taken": torch.ones(())})
        elif state:
            objective.load_state_dict(state)
        value = objective.differentiable_loss(*pair, x)
        found.append(float(value.detach()) / len(x))
        return value

    gradient = worst(slopes(name, "gradient", exact, loss, [*reference.parameters()], rounds))
    yield _of_rounds(name, "loss, nats per datum", float(exact.detach()) / len(x), found)
    yield gradient


def _of_rounds(name: str, what: str, exact: float, found: list[float]) -> Line:
    values = torch.tensor(found, dtype=torch.float64)
    return Line(
        name, what, exact, float(values.mean()), float(values.std()) / math.sqrt(len(values)), 1, len(values) - 1
    )


def total_correlations(x: Tensor, rounds: int) -> Iterator[Line]:
    """Check ``TotalCorrelation`` with each estimator of q(z)."""
    for estimator in ("all", "weighted", "stratified", "even"):
        yield from total_correlation(estimator, x, rounds)


def total_correlation(estimator: str, x: Tensor, rounds: int) -> Iterator[Line]:
    """Compare the total correlation and the loss gradient with their expectations.

    For ``"all"`` the batch has all data, and the expectations are exact values of q(z).
    """
    reference = LinearGaussianVAE()
    whole = estimator == "all"
    size, kind = (len(x), "even") if whole else (SIZE, estimator)
    name = "TotalCorrelation, " + (estimator if whole else f"{estimator}, {SIZE} of {len(x)}")
    parts = rate_parts(reference, x, estimator)

    def terms(weights: tuple[float, float, float]) -> Any:
        information, weight, units = weights
        objective = TotalCorrelation(elbo("trace"), weight, information, units, kind, num_data=len(x))
        return objective.terms(reference.model, reference.guide, x[torch.randperm(len(x))[:size]])

    alone = [terms((0.0, 1.0, 0.0)) for _ in range(rounds)]
    found = [float((one.loss - one.distortion).detach()) / size for one in alone]
    yield _of_rounds(name, "total correlation, nats", float(parts[1].detach()), found)
    exact = size * (_distortion(reference, x) / len(x) + parts @ torch.tensor(WEIGHTS, dtype=torch.float64))
    yield worst(slopes(name, "gradient", exact, lambda: terms(WEIGHTS).loss, [*reference.parameters()], rounds))
    if estimator in ("stratified", "even"):
        yield _without_bias(estimator, reference, x)


@torch.no_grad()
def _without_bias(estimator: str, reference: LinearGaussianVAE, x: Tensor) -> Line:
    """Compare an estimate of q(z), averaged over all batches, with q(z)."""
    q, rows = reference.q(x), batches(estimator, len(x))
    z = q.sample()
    density = q.log_prob(z[:, None]).exp()  # (i, j): draw i under code j
    weights = batch_weights(estimator, SIZE, len(x))[0]
    estimate = (density[rows[:, :1], rows] * weights).sum(-1)
    off = max(abs(float(estimate[rows[:, 0] == i].mean() / density[i].mean()) - 1) for i in range(len(x)))
    return Line(f"batch_weights, {estimator}", "largest |mean of q^(z) / q(z) - 1|", 0.0, off, 0.0)
