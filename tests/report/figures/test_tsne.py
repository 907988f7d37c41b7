"""t-SNE keeps neighbours, and takes data without variance."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from matplotlib.axes import Axes

from pyro_vae.data import Split
from pyro_vae.report.figures import tsne
from pyro_vae.report.figures.encoded import encode
from tests.report.examples import (
    make_vae,
    vectors,
)


def embedding(axes: Axes) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections]))


def test_tsne_keeps_the_neighbours_of_means_and_of_data() -> None:
    """Two far groups by label: each point's nearest neighbour is of its group. Both rows show the same points."""
    labels = torch.arange(30) % 2
    noise = torch.rand(30, 5, generator=torch.Generator().manual_seed(0))
    split = Split(noise + 20 * labels[:, None], labels)
    with torch.no_grad():
        encoded = encode(make_vae(3, (5,)), split)
        figure = tsne.tsne(dataclasses.replace(encoded, means=split.x[:, :3].double()), split, "test")
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["latent means, Z = 3", "raw data, D = 5"] * 2
    for plain, coloured in ((panels[0], panels[2]), (panels[1], panels[3])):
        assert [c.get_label() for c in coloured.collections] == ["0", "1"]
        assert [len(c.get_offsets()) for c in coloured.collections] == [15, 15]
        points = embedding(coloured)
        assert {tuple(p) for p in points.tolist()} == {tuple(p) for p in embedding(plain).tolist()}
        nearest = (torch.cdist(points, points) + torch.eye(30) * 1e6).argmin(1)
        assert torch.equal(nearest < 15, torch.arange(30) < 15)
    assert not torch.equal(embedding(panels[0]), embedding(panels[1]))


def test_tsne_is_of_at_most_so_many_data_and_leaves_numpys_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()
    with torch.no_grad():
        split = vectors(70).train
        figure = tsne.tsne(encode(make_vae(1, (5,)), split), split, "test")
    assert np.random.get_state()[1].tolist() == before
    assert len(figure.axes) == 2  # no labels, no second row
    assert [len(embedding(axes)) for axes in figure.axes] == [40, 40]
    assert "40 of 70 test data, perplexity 13" in figure.get_suptitle()


def test_tsne_bears_data_without_variance() -> None:
    split = Split(torch.ones(12, 5))
    with torch.no_grad():
        figure = tsne.tsne(encode(make_vae(3, (5,)), split), split, "test")
    assert all(embedding(axes).isfinite().all() for axes in figure.axes)
