"""Pictures of comparisons, calibrations and predictive checks: they show the numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from pyro_vae.data import Split
from pyro_vae.evidence import importance_sampling
from pyro_vae.evidence.comparison import compare
from pyro_vae.evidence.criticism.calibration import Calibration
from pyro_vae.evidence.criticism.predictive import predictive_checks
from pyro_vae.evidence.criticism.ranks import LOG_JOINT, LOG_Q
from pyro_vae.report.figures.calibration import MAX_UNITS, coverage, ranks
from pyro_vae.report.figures.comparison import comparison
from pyro_vae.report.figures.log_px import worst
from pyro_vae.report.figures.predictive import predictive
from pyro_vae.report.pictures import write_figure
from tests.oracles import LinearGaussian

ORACLE = LinearGaussian()


def words(figure: Figure) -> str:
    figure.canvas.draw()
    texts = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_visible()]
    return "\n".join(texts)


def calibration(units: int, log_q: bool = True) -> Calibration:
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 20, 300) for _ in range(units)]
    columns[0] //= 2
    names = [f"z[{k}]" for k in range(units)] + [LOG_JOINT, *([LOG_Q] if log_q else [])]
    columns += [rng.integers(0, 20, 300) for _ in names[units:]]
    return Calibration(torch.from_numpy(np.stack(columns, 1)), tuple(names), 19)


@pytest.mark.parametrize(("units", "log_q"), [(1, False), (2, True), (7, True)])
def test_the_lines_are_the_distribution_functions(units, log_q, tmp_path):
    found = calibration(units, log_q)
    figure = ranks(found)
    shown = min(units, MAX_UNITS) + 1 + log_q
    axes = figure.axes
    assert len(axes) == shown
    assert axes[0].get_title(loc="left").startswith("z[0]: p ")
    line = axes[0].lines[1]  # the first is zero
    values = found.pit[:, 0].numpy()
    delta = (values[:, None] < found.band.grid).mean(0) - found.band.grid
    np.testing.assert_array_equal(line.get_xdata(), [0, *found.band.grid, 1])
    np.testing.assert_allclose(line.get_ydata(), [0, *delta, 0], rtol=0, atol=1e-15)
    assert "too high" in axes[0].get_title(loc="left")
    assert all("too" not in one.get_title(loc="left") for one in axes[1:])
    low, high = axes[0].get_ylim()
    assert low < delta.min()
    assert high > max(delta.max(), (found.band.upper - found.band.grid).max())
    assert write_figure(tmp_path / "ranks.png", figure).stat().st_size > 10_000
    assert pyplot.get_fignums() == []


def test_coverage_is_drawn_for_the_units_and_the_joint_set():
    found = calibration(2)
    figure = coverage(found)
    assert [one.get_title(loc="left") for one in figure.axes] == [
        "central interval of z[0]",
        "central interval of z[1]",
        "highest-density set of z",
    ]
    sets, size = found.credible("z[1]", found.ranks[:, 1])
    assert size == 10
    grid = np.arange(1, 10) / 10
    share = (sets.numpy()[:, None] < np.arange(1, 10)).mean(0)
    line = figure.axes[1].lines[1]
    np.testing.assert_allclose(line.get_xdata(), [0, *grid, 1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(line.get_ydata(), [0, *(share - grid), 0], rtol=0, atol=1e-15)


def test_a_comparison_shows_intervals_and_weights(tmp_path):
    x = ORACLE.draw(40)
    estimates = {
        "first": importance_sampling(ORACLE.model, ORACLE.guide(0.1, 1.1), x, num_samples=100),
        "second": importance_sampling(
            LinearGaussian(scale=0.8).model, LinearGaussian(scale=0.8).guide(), x, num_samples=100
        ),
    }
    found = compare(estimates, reference="first")
    figure = comparison(found)
    text = words(figure)
    assert "first, the reference" in text
    assert f"{found['second'].weight:.2f}" in text
    assert "cannot be trusted" not in text
    row = found["second"]
    ends = [line.get_xdata() for line in figure.axes[0].lines]
    assert any(list(pair) == [row.lower, row.upper] for pair in ends)
    narrow = importance_sampling(ORACLE.model, ORACLE.guide(0.0, 0.4), x, num_samples=100)
    assert "cannot be trusted" in words(comparison(compare({**estimates, "narrow": narrow})))
    assert write_figure(tmp_path / "compare.png", figure).stat().st_size > 5_000
    given = compare({**estimates, "narrow": narrow}, evidence="log p(x|y)")
    for text in (given.table(), words(comparison(given))):
        assert text.count("log p(x|y)") >= 2
        assert "log p(x)" not in text


@pytest.mark.parametrize("side", [2, 8])
def test_predictive_checks_show_each_statistic(side, tmp_path):
    torch.manual_seed(0)
    sets = (torch.rand(240, 10, side, side) < 0.3).float()
    found = predictive_checks(1 - sets[0], sets)
    figure = predictive(found)
    titles = [one.get_title(loc="left") for one in figure.axes]
    assert len(titles) == len(found.names) + 1
    for k, name in enumerate(found.names):
        assert titles[k] == f"{name}: p = {found.p_values[name]:.3f}"
        assert figure.axes[k].lines[0].get_xdata()[0] == float(found.observed[k])
    assert write_figure(tmp_path / "predictive.png", figure).stat().st_size > 5_000


def test_the_least_trusted_have_no_k_where_all_weights_are_equal():
    x = ORACLE.draw(3)
    found = importance_sampling(ORACLE.model, ORACLE.guide(shift=0.5), x, num_samples=50, seed=0)
    equal = dataclasses.replace(found, pareto_k=torch.full((3,), -torch.inf))
    shown = [words(worst(e, Split(torch.zeros(3, 1, 4, 4)), "test")) for e in (found, equal)]
    assert "k −inf" not in shown[1]
    assert "k " in shown[0].replace("Pareto k ", "")
