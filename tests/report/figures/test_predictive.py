"""The picture of predictive checks shows each statistic."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.evidence.criticism.predictive import predictive_checks
from pyro_vae.report.figures.predictive import predictive
from pyro_vae.report.pictures import write_figure


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
