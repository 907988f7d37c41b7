"""Pictures of units against factors: what they say is what the scores say."""

from __future__ import annotations

import pytest
import torch

from pyro_vae import VAE
from pyro_vae.data.named import shapes
from pyro_vae.evidence import mutual_information_gap
from pyro_vae.report.figures.disentanglement import traversals_by_factor, units_by_factors

FACTORS = shapes.draw_factors(2000)
NAMES = [*shapes.FACTORS]


def gap():
    """A code of six units: one that stands still, then the factors in reverse."""
    still = torch.zeros(2000, 1, dtype=torch.float64)
    return mutual_information_gap(torch.cat([still, FACTORS.flip(1).double()], 1), FACTORS)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_units_stand_in_the_order_of_their_factors():
    found = gap()
    figure = units_by_factors({"one": found, "two": found}, NAMES)
    panel = figure.axes[0]
    assert panel.get_title() == f"one\nMIG {found.value:.3f} ± {found.std_error:.3f}"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == NAMES
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [f"$z_{{{k}}}$" for k in (6, 5, 4, 3, 2, 1)]
    assert texts(panel).count("100") == 5
    assert torch.allclose(
        torch.from_numpy(panel.images[0].get_array().data)[:5].diagonal(), torch.ones(5).double(), atol=0.02
    )
    with pytest.raises(ValueError, match="factors: expected 5 names for one, got 2"):
        units_by_factors({"one": found}, NAMES[:2])
    with pytest.raises(ValueError, match="scores: expected at least one code"):
        units_by_factors({}, NAMES)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_model_has_a_block_with_its_units_and_their_factors(count):
    torch.manual_seed(0)
    models = {f"model {k}": VAE((1, 8, 8), 6, (5,)).eval() for k in range(count)}
    with torch.no_grad():
        figure = traversals_by_factor(models, torch.zeros(1, 8, 8), dict.fromkeys(models, gap()), NAMES)
    words = texts(figure.axes[0])
    for title in models:
        assert f"{title}: MIG {gap().value:.2f}" in words
    for unit, factor in zip((6, 5, 4, 3, 2), NAMES, strict=True):
        assert words.count(f"$z_{{{unit}}}$: {factor} 100 %") == count
    assert len(figure.axes[0].images) == count * 5 * 7


def test_of_units_that_say_nothing_one_is_shown():
    still = torch.zeros(2000, 4, dtype=torch.float64)
    found = mutual_information_gap(torch.cat([still, FACTORS[:, :2].double()], 1), FACTORS)
    with torch.no_grad():
        figure = traversals_by_factor({"one": VAE((1, 8, 8), 6, (5,))}, torch.zeros(1, 8, 8), {"one": found}, NAMES)
    words = texts(figure.axes[0])
    assert sum(word.endswith(": nothing") for word in words) == 1
    assert len(figure.axes[0].images) == 3 * 7


def test_a_row_moves_its_unit_alone():
    torch.manual_seed(1)
    vae = VAE((1, 8, 8), 6, (5,)).eval()
    x = torch.rand(1, 8, 8)
    with torch.no_grad():
        figure = traversals_by_factor({"one": vae}, x, {"one": gap()}, NAMES)
        z = vae.encode(x[None]).mean[0]
        units = gap().shares.amax(1).argsort(descending=True, stable=True)[:5].tolist()
        for row, unit in enumerate(units):
            for column, value in ((0, -3.0), (3, 0.0), (6, 3.0)):
                moved = z.clone()
                moved[unit] = value
                expected = vae.decode(moved).base_dist.probs[0]
                shown = torch.from_numpy(figure.axes[0].images[7 * row + column].get_array().data).float()
                assert torch.allclose(shown, expected, atol=1e-5)
