"""Pictures of log p(x) count every datum once and show the right images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pyro_vae.data import Split
from pyro_vae.evidence import importance_sampling
from pyro_vae.report.figures import log_px
from pyro_vae.report.figures.log_px import worst
from tests.oracles import LinearGaussian
from tests.report.examples import drawn_text, make_estimate


@pytest.mark.parametrize("count", [300, 4])
def test_the_least_likely_images_stand_in_order_over_their_log_px(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, values = torch.rand(count, 1, 3, 2, generator=generator), 50 * torch.randn(count, generator=generator).double()
    with torch.no_grad():
        figure = log_px.log_px(make_estimate(values, torch.zeros(count)), Split(x), True, "test")
    order = values.argsort()[:10]
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == min(10, count)
    for axes, row in zip(shown, order, strict=True):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), x[row, 0].double().numpy())
        assert axes.get_xlabel() == f"{values[row]:.1f}".replace("-", "−")


def test_the_histogram_counts_every_datum_once_and_marks_the_mean() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()
    k = torch.where(torch.arange(500) < 120, 0.9, 0.1)
    with torch.no_grad():
        figure = log_px.log_px(make_estimate(values, k), Split(torch.ones(500, 5)), False, "test")
    (axes,) = figure.axes
    assert [sum(bar.get_height() for bar in kind) for kind in axes.containers] == [380, 120]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[:2] == ["380 data, Pareto k at most 0.67", "120 data, Pareto k above 0.67: likely too low"]
    edges = [bar.get_x() for bar in axes.containers[0]]
    whole = [a.get_height() + b.get_height() for a, b in zip(*axes.containers, strict=True)]
    assert whole == np.histogram(values.numpy(), [*edges, float(values.max())])[0].tolist()
    assert axes.lines[0].get_xdata()[0] == pytest.approx(float(values.mean()))
    assert f"± {float(values.std()) / 500**0.5:.2f}" in str(axes.lines[0].get_label())
    assert "K = 1,000 draws" in axes.get_title()
    assert "nats" in axes.get_xlabel()


def test_one_value_for_all_data_is_a_histogram_too() -> None:
    with torch.no_grad():
        figure = log_px.log_px(make_estimate(torch.zeros(3), torch.zeros(3)), Split(torch.ones(3, 5)), False, "test")
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == 3


ORACLE = LinearGaussian()


def test_the_least_trusted_have_no_k_where_all_weights_are_equal():
    x = ORACLE.draw(3)
    found = importance_sampling(ORACLE.model, ORACLE.guide(shift=0.5), x, num_samples=50, seed=0)
    equal = dataclasses.replace(found, pareto_k=torch.full((3,), -torch.inf))
    shown = [drawn_text(worst(e, Split(torch.zeros(3, 1, 4, 4)), "test")) for e in (found, equal)]
    assert "k −inf" not in shown[1]
    assert "k " in shown[0].replace("Pareto k ", "")
