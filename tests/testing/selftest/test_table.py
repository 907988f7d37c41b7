"""The self-test's table: a line for everything, right as the package is, and red where a fault is planted."""

from __future__ import annotations

import dataclasses
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import evidence, handlers, inference
from pyro_vae.inference.kl.control import KLControl
from pyro_vae.inference.objectives import enumerated as enumerated_elbo
from pyro_vae.inference.objectives import wake_sleep
from pyro_vae.inference.objectives.enumerated import TraceEnumELBO
from pyro_vae.inference.objectives.weighted import WeightedELBO
from pyro_vae.testing.selftest import estimators as estimator_lines
from pyro_vae.testing.selftest import objectives
from pyro_vae.testing.selftest.estimators import estimators
from pyro_vae.testing.selftest.linear_gaussian import LinearGaussianVAE
from pyro_vae.testing.selftest.objectives import CASES, enumerated, penalties, plain, total_correlation
from pyro_vae.testing.selftest.table import WITHOUT, chance, data, measure
from tests.children import ROOT


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("pyro_vae.testing.selftest.estimators.STEPS", 40)
    monkeypatch.setattr("pyro_vae.testing.selftest.linear_gaussian.NODES", 6)
    monkeypatch.setattr("pyro_vae.testing.selftest.mixtures.CODE_NODES", 14)


def public_names() -> set[str]:
    """Objectives, wrappers of objectives, estimators and handlers of the KL."""
    of_evidence = {name for name in evidence.__all__ if name[0].islower()}
    of_handlers = {name for name in vars(handlers) if name.startswith("scale_kl")}
    exported = {name: getattr(inference, name) for name in inference.__all__}
    wrappers = {n for n, value in exported.items() if isinstance(value, type) and issubclass(value, KLControl)}
    return {*inference.OBJECTIVES, *wrappers, *of_evidence, *of_handlers, "log_weights", "batch_weights"}


@pytest.mark.parametrize(
    ("num_samples", "rounds"),
    [pytest.param(100, 40, id="few"), pytest.param(512, None, id="as the command", marks=pytest.mark.slow)],
)
def test_all_figures_are_right_and_nothing_is_left_out(num_samples, rounds, quick):
    lines = list(measure(num_samples, 1, rounds))
    assert [str(line) for line in lines if not line.right] == []
    names = {line.name.split(",")[0] for line in lines}
    assert names | set(WITHOUT) == public_names()
    assert not names & set(WITHOUT)
    exact = {line.name for line in lines if line.error == 0}
    assert exact == {"log_weights, exact posterior", "kl_per_unit", "batch_weights, even", "batch_weights, stratified"}
    assert chance(lines) < 0.03


def some(names, *quick):
    """Names as parameters: all but a few are left to make test-all."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def broken(lines) -> set[tuple[str, str]]:
    return {(line.name, line.what) for line in lines if not line.right}


X = data(LinearGaussianVAE())


def no_score_terms(model_trace, guide_trace):
    """The surrogate of a loss whose author forgot that draws without rsample need one."""
    terms = [s["log_prob_sum"] for t in (guide_trace, model_trace) for s in t.nodes.values() if s["type"] == "sample"]
    signs = [1, -1, -1]
    return sum(sign * term for sign, term in zip(signs, terms[:3], strict=True))


def added(cls, nats):
    right = cls.bound
    return lambda self, *args, **kwargs: right(self, *args, **kwargs) + nats


#: Objective: where a fault is planted, the fault, and in which figure it is to be seen.
OF_OBJECTIVES = {
    "trace, score function": ("pyro_vae.inference.objectives.trace._surrogate", no_score_terms, "gradient"),
    "graph, score function": (
        "pyro_vae.inference.objectives.graph._less_baseline",
        lambda name, site, cost: (0 * cost, torch.zeros(())),
        "gradient",
    ),
    "mean-field": (
        "pyro_vae.inference.objectives.mean_field.closed_kl",
        lambda q, p: 0.9 * dist.kl.kl_divergence(q, p),
        "bound, nats",
    ),
    "vimco": ("pyro_vae.inference.objectives.importance.VIMCO._surrogate", WeightedELBO._surrogate, "gradient"),
    "piwae": (
        "pyro_vae.inference.objectives.importance.PIWAE._surrogate",
        WeightedELBO._surrogate,
        "gradient of the model",
    ),
    "rws": ("pyro_vae.inference.objectives.wake_sleep.RWS._surrogate", WeightedELBO._surrogate, "gradient"),
    "tvo": ("pyro_vae.inference.objectives.wake_sleep.TVO._surrogate", wake_sleep.RWS._surrogate, "gradient"),
    "iwae": (
        "pyro_vae.inference.objectives.importance.IWAE.value",
        lambda self, log_w: log_w.logsumexp(0) - 0.5,
        "bound, nats",
    ),
    "stl": (
        "pyro_vae.inference.objectives.path_gradient.STL.value",
        lambda self, log_w: log_w.mean(0) + 0.1,
        "bound, nats",
    ),
}


@pytest.mark.parametrize("name", some(OF_OBJECTIVES, "trace, score function", "mean-field"))
def test_a_fault_of_an_objective_is_seen(name, monkeypatch, quick):
    place, fault, figure = OF_OBJECTIVES[name]
    monkeypatch.setattr(place, fault)
    assert figure in {what for _, what in broken(plain(name, CASES[name], X, 100))}


def test_a_fault_of_the_sum_over_labels_is_seen(monkeypatch, quick):
    monkeypatch.setattr(TraceEnumELBO, "bound", added(TraceEnumELBO, 0.1))
    assert broken(enumerated(X, 100)) == {("enum, three labels", "bound, nats")}


def test_a_sum_that_forgets_what_a_label_counts_for_is_seen(monkeypatch, quick):
    """As if q(y|x), by which the terms are averaged, were a constant: no gradient, though the bound is right."""
    right = enumerated_elbo.ElboSums.mean

    def fixed(self, value):
        before, self.log_q = self.log_q, self.log_q.detach()
        found = right(self, value)
        self.log_q = before
        return found

    monkeypatch.setattr(enumerated_elbo.ElboSums, "mean", fixed)
    assert broken(enumerated(X, 100)) == {("enum, three labels", "gradient")}


OF_PENALTIES = {
    "FreeBits": ("floors.FreeBits", lambda self, rates: rates.sum().clamp(min=self.nats)),
    "MinimumRate": ("floors.MinimumRate", lambda self, rates: rates.sum()),
    "Capacity": ("targets.Capacity", lambda self, rates: self.weight * rates.sum()),
    "TargetRate": ("targets.TargetRate", lambda self, rates: self.beta_min * rates.sum()),
}


@pytest.mark.parametrize("name", some(OF_PENALTIES, "Capacity"))
def test_a_fault_of_a_penalty_is_seen(name, monkeypatch):
    place, fault = OF_PENALTIES[name]
    monkeypatch.setattr(f"pyro_vae.inference.kl.{place}.penalty", fault)
    found = broken(penalties(X, 100))
    assert (name, "loss, nats per datum") in found
    assert {where for where, _ in found} == {name}


@pytest.mark.slow
def test_a_wrong_weight_of_the_kl_is_seen(monkeypatch):
    right = handlers.scale_kl_pair
    monkeypatch.setattr(objectives, "scale_kl_pair", lambda model, guide, beta: right(model, guide, 0.9 * beta))
    wrong = {(f"scale_kl_pair, {key}", "loss, nats per datum") for key in ("trace", "mean-field")}
    assert wrong <= broken(penalties(X, 100))


def two_columns(size, total):
    """The weights of the code released with the paper: columns in the place of diagonals."""
    others = size - 1
    weights = torch.full((size, size), 1 / others, dtype=torch.float64)
    weights[:, 0], weights[:, 1] = 1 / total, (total - others) / (total * others)
    return weights


def own_as_others(size, total):
    return torch.full((size, size), 1 / size, dtype=torch.float64)


def own_twice(size, total):
    return own_as_others(size, total).fill_diagonal_(2 / size)


#: A fault of each kind of weights.
OF_WEIGHTS = {"weighted": own_twice, "stratified": two_columns, "even": own_as_others}


@pytest.mark.parametrize("estimator", some(inference.kl.total_correlation.ESTIMATORS, "stratified"))
def test_a_fault_of_the_weights_of_a_batch_is_seen(estimator, monkeypatch, quick):
    monkeypatch.setitem(inference.kl.total_correlation.ESTIMATORS, estimator, OF_WEIGHTS[estimator])
    found = {name for name, _ in broken(total_correlation(estimator, X, 200))}
    assert f"TotalCorrelation, {estimator}, 3 of 8" in found
    assert (f"batch_weights, {estimator}" in found) == (estimator == "even")


@pytest.mark.slow
def test_a_fault_of_the_marginals_is_seen(monkeypatch, quick):
    """A variance passed as a scale."""
    monkeypatch.setattr(
        "pyro_vae.inference.kl.total_correlation._marginals",
        lambda fn: torch.distributions.Normal(fn.mean, fn.variance),
    )
    found = broken(total_correlation("all", X, 100))
    assert ("TotalCorrelation, all", "total correlation, nats") in found


def shifted(name, nats):
    """An estimator whose log p(x) is off."""
    right = getattr(evidence, name)

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        return dataclasses.replace(found, log_px=found.log_px + nats)

    return wrong


def off_bracket(*args, **kwargs):
    found = RIGHT["bidirectional"](*args, **kwargs)
    return dataclasses.replace(found, lower=dataclasses.replace(found.lower, log_px=found.lower.log_px - 0.5))


def off_comparison(estimates, **kwargs):
    return RIGHT["compare"](
        {name: estimates[name] for name in ("full", "units")} | {"units": estimates["full"]}, **kwargs
    )


def off_gaps(*args, **kwargs):
    found = RIGHT["gaps"](*args, **kwargs)
    return dataclasses.replace(found, elbo=found.elbo - 0.2)


def off_simulated(model, x):
    found = RIGHT["simulate"](model, x)
    return found._replace(args=(1.2 * found.args[0],))


def off_calibration(model, guide, *args, **kwargs):
    return RIGHT["calibrate"](
        model, lambda x: pyro.poutine.trace(LinearGaussianVAE().vae.guide).get_trace(x), *args, **kwargs
    )


def off_aggregate(*args, **kwargs):
    found = RIGHT["aggregate_posterior"](*args, **kwargs)
    return dataclasses.replace(found, total_correlation=found.total_correlation + 0.1)


def off_hidden(vae, x, visible, **kwargs):
    return RIGHT["hidden_log_px"](vae, x, ~visible, **kwargs)


def off_inpaint(vae, x, visible, **kwargs):
    found = RIGHT["inpaint"](vae, x, visible, **kwargs)
    return dataclasses.replace(found, mean=vae.decode(vae.encode(x).mean).mean)


RIGHT = {name: getattr(evidence, name) for name in evidence.__all__ if name[0].islower()}
OF_ESTIMATORS = {
    "importance_sampling": shifted("importance_sampling", 0.2),
    "importance_sampling, three labels": shifted("importance_sampling", -0.2),
    "prior_sampling": shifted("prior_sampling", -1.0),
    "refined_importance_sampling": shifted("refined_importance_sampling", 0.1),
    "annealed_importance_sampling, guide": shifted("annealed_importance_sampling", 0.2),
    "bidirectional, lower": off_bracket,
    "gaps": off_gaps,
    "compare": off_comparison,
    "simulate": off_simulated,
    "replicates": lambda vae, x: lambda: vae.decode(vae.prior().sample((len(x),))).mean,
    "calibrate": off_calibration,
    "aggregate_posterior": off_aggregate,
    "kl_per_unit": lambda q, p: 1.001 * RIGHT["kl_per_unit"](q, p),
    "hidden_log_px": off_hidden,
    "inpaint": off_inpaint,
}


PARTS = {
    "prior_sampling": lambda reference, x, num, seed: estimator_lines.naive(reference, x, 5 * num, seed),
    **dict.fromkeys(("importance_sampling", "refined_importance_sampling"), estimator_lines.sampled),
    **dict.fromkeys(("gaps", "compare", "simulate", "replicates", "calibrate"), estimator_lines.of_models),
    **dict.fromkeys(("aggregate_posterior", "kl_per_unit"), estimator_lines.of_codes),
    **dict.fromkeys(("hidden_log_px", "inpaint"), estimator_lines.of_pixels),
}


@pytest.mark.parametrize("name", some(OF_ESTIMATORS, "prior_sampling", "aggregate_posterior"))
def test_a_fault_of_an_estimator_is_seen(name, monkeypatch, quick):
    key = name.split(",")[0]
    lines = PARTS.get(key, lambda reference, x, num, seed: estimator_lines.annealed(reference, x, seed))
    monkeypatch.setattr(evidence, key, OF_ESTIMATORS[name])
    assert name in {where for where, _ in broken(lines(LinearGaussianVAE(), X, 1000, 0))}


@pytest.mark.slow
def test_a_wrong_density_is_seen_by_all_that_estimate_it(monkeypatch, quick):
    reference = LinearGaussianVAE()
    exact = reference.vae.log_px
    monkeypatch.setattr(reference.vae, "log_px", lambda x: exact(x) + 0.5)
    wrong = {name for name, _ in broken(estimators(reference, X, 500, 0))}
    assert wrong >= {
        "log_weights",
        "importance_sampling",
        "prior_sampling",
        "bidirectional, lower",
        "bidirectional, upper",
    }


def test_naive_draws_are_judged_by_the_variance_they_have():
    """The closed form of the second moment of p(x|z) against a sum over a grid of z."""
    reference = LinearGaussianVAE()
    vae = reference.vae
    line = next(estimator_lines.naive(reference, X, 1000, 0))
    steps = torch.linspace(-7, 7, 401, dtype=torch.float64)
    z = torch.cartesian_prod(steps, steps)
    density = (vae.prior().log_prob(z) + 2 * math.log(14 / 400)).exp()
    with torch.no_grad():
        likelihood = torch.stack([vae.decode(z).log_prob(each).exp() for each in X], -1)
    first, second = (density[:, None] * likelihood).sum(0), (density[:, None] * likelihood.square()).sum(0)
    variance = (second / first.square() - 1) / 1000
    assert line.error == pytest.approx(float(variance.sum().sqrt()) / 8, rel=1e-6)


def test_the_docs_say_what_has_no_line():
    page = (ROOT / "docs" / "testing.md").read_text()
    rows = [row.split("|")[1] for row in page.split("| without a line |")[1].split("\n\n")[0].splitlines()[2:]]
    said = set(re.findall(r"`([\w.]+)`", " ".join(rows)))
    assert said == {*WITHOUT, "SVI", "fit", "load"}
