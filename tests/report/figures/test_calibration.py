"""Pictures of a calibration show its distribution functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from pyro_vae.evidence.criticism.calibration import Calibration
from pyro_vae.evidence.criticism.ranks import LOG_JOINT, LOG_Q
from pyro_vae.report.figures.calibration import MAX_UNITS, coverage, ranks
from pyro_vae.report.pictures import write_figure


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
