"""The KL of each latent unit against its closed form, and traversals of one unit."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_vae.data import Split
from pyro_vae.models.base import mean_image
from pyro_vae.models.registry import MODELS
from pyro_vae.models.vae import VAE
from pyro_vae.report.figures import tiles
from pyro_vae.report.figures.encoded import encode
from pyro_vae.report.figures.units import traversals, units
from tests.report.examples import make_vae, vectors


def closed_form_kl(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, s^2) || N(0, 1)) = (mu^2 + s^2 - 1) / 2 - log s of each unit, mean over data."""
    with torch.no_grad():
        loc, log_scale = vae.encoder(x).double().chunk(2, dim=-1)
    return ((loc.square() + (2 * log_scale).exp() - 1) / 2 - log_scale).mean(0)


def test_units_are_drawn_by_their_kl_and_split_by_activity() -> None:
    vae, data = make_vae(6, (5,)), vectors(200).train
    with torch.no_grad():
        vae.encoder.head.weight[[1, 4]] = 0  # their means are constant, their KL is not 0
        vae.encoder.head.bias[4] = 3.0
        encoded = encode(vae, data)
        assert encoded.unit_kl is not None
        figure = units(encoded, encoded.unit_kl, "test")
    expected = closed_form_kl(vae, data.x)
    torch.testing.assert_close(encoded.unit_kl, expected, rtol=1e-5, atol=1e-6)
    axes = figure.axes[0]
    order = [int(tick.get_text()) - 1 for tick in axes.get_xticklabels()]
    assert order == expected.argsort(descending=True).tolist()
    dots = {c.get_label(): np.asarray(c.get_offsets()) for c in axes.collections if not c.get_label().startswith("_")}
    (active, inactive) = dots.values()
    assert [label.split(":")[0] for label in dots] == ["4 active", "2 inactive"]
    assert {order[int(place) - 1] for place in inactive[:, 0]} == {1, 4}
    for place, height in np.concatenate([active, inactive]):
        assert height == pytest.approx(float(expected[order[int(place) - 1]]), rel=1e-5)
    assert f"is {float(expected.sum()):.2f} nats" in axes.get_title()


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (2.0, 0.5)])
def test_traversals_move_one_unit_over_the_prior_from_the_posterior_mean(loc: float, scale: float) -> None:
    class Prior(torch.nn.Module):
        def forward(self) -> TorchDistributionMixin:
            return dist.Normal(torch.full((4,), loc), torch.full((4,), scale)).to_event(1)

    vae, x = make_vae(4, (1, 4, 3), prior=Prior()), torch.rand(1, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    kl = torch.tensor([0.5, 3.0, 0.0, 1.0])
    with torch.no_grad():
        axes = traversals(vae, Split(x), kl, "test").axes[0]
        mean = vae.encode(x).mean[0]
        assert [t.get_text() for t in axes.get_yticklabels()] == [
            "$z_{2}$: 3.00 nats",
            "$z_{4}$: 1.00 nats",
            "$z_{1}$: 0.50 nats",
            "$z_{3}$: 0.00 nats",
        ]
        for row, unit in enumerate((1, 3, 0, 2)):
            for column, tick in enumerate(axes.get_xticklabels()):
                z = mean.clone()
                z[unit] = loc + scale * float(tick.get_text().replace("−", "-"))
                shown = torch.from_numpy(np.asarray(axes.images[13 * row + column].get_array())).float()
                torch.testing.assert_close(shown, mean_image(vae.decode(z))[0])
    frames = axes.patches[-4:]
    for row, unit in enumerate((1, 3, 0, 2)):
        value = min(max(float(mean[unit] - loc) / scale, -3), 3)
        assert abs(-3 + (frames[row].get_x() - tiles.GAP) / 2 - value) <= 0.25 + 1e-5
        assert frames[row].get_y() == pytest.approx(row + tiles.GAP)


def test_of_many_units_the_ten_of_largest_kl_are_traversed() -> None:
    kl = torch.rand(30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        axes = traversals(make_vae(30, (1, 2, 2)), Split(torch.rand(3, 1, 2, 2)), kl, "test").axes[0]
    assert [int(t.get_text()[4:].split("}")[0]) - 1 for t in axes.get_yticklabels()] == kl.topk(10).indices.tolist()
    assert "10 of 30 units" in axes.get_title()


@pytest.mark.parametrize(
    ("name", "formula", "rate"),
    [
        ("vae", "KL(q(z_j|x) ", True),
        ("conditional", "KL(q(z_j|x, y) ", True),
        ("m2", "their sum is", False),
        ("auxiliary", "their sum is", False),
        ("m1m2", "their sum is", False),
    ],
)
def test_the_sum_over_units_is_the_rate_where_they_are_all_latents(name, formula, rate):
    y = torch.arange(10)
    kind = MODELS[name]
    given = {} if name == "vae" else {"num_classes": 10}
    vae, split = kind((1, 8, 8), 3, (8,), "tanh", **given), Split(torch.rand(10, 1, 8, 8).round(), y)
    with torch.no_grad():
        encoded = encode(vae, split)
        title = units(encoded, encoded.unit_kl, "test").axes[0].get_title().replace("$", "")
    assert formula in title
    assert ("the rate" in title) == rate
