"""Latent vectors are drawn where they lie, told apart by label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae.data import Split
from pyro_vae.report.figures import latents
from pyro_vae.report.figures.encoded import encode
from tests.report.examples import (
    make_vae,
    vectors,
)


def test_latents_are_the_posterior_means_and_at_most_5000() -> None:
    data = vectors(5300, labels=True).train
    vae = make_vae(2, (5,))
    with torch.no_grad():
        axes = latents.latents(encode(vae, data), "test").axes[0]
        means = vae.encode(data.x).mean
    assert "5,000 of 5,300" in axes.get_title()
    assert [c.get_label() for c in axes.collections] == ["0", "1", "2"]
    assert sum(len(c.get_offsets()) for c in axes.collections) == 5000
    assert data.y is not None
    for label, points in enumerate(axes.collections):
        drawn = torch.from_numpy(np.asarray(points.get_offsets())).float()
        assert torch.cdist(drawn, means[data.y == label]).min(1).values.max() < 1e-3


def test_twenty_classes_differ_in_colour_or_marker() -> None:
    x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)).round()
    with torch.no_grad():
        axes = latents.latents(encode(make_vae(2, (5,)), Split(x, torch.arange(60) % 20)), "test").axes[0]
    kinds = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in axes.collections}
    assert len(kinds) == 20


def test_principal_components_keep_distances_and_bear_constant_means() -> None:
    plane = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    points, axis_names = latents._at_most_two((plane @ turn[:2]).numpy())
    torch.testing.assert_close(torch.pdist(torch.from_numpy(points)), torch.pdist(plane))
    assert sum(float(name.split("(")[1].split("%")[0]) for name in axis_names) == pytest.approx(100, abs=0.11)
    points, _ = latents._at_most_two(np.ones((5, 4)))
    assert np.all(points == 0)
