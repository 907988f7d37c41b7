from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_vae.data import Data, Split, Stored, load
from pyro_vae.evidence import Estimate
from pyro_vae.inference import History
from pyro_vae.models.base import mean_image
from pyro_vae.models.vae import VAE
from pyro_vae.report import draw_pictures, pictures
from pyro_vae.report.figures import curves, images, latents, log_px, tiles, tsne, units
from pyro_vae.report.figures.encoded import encode
from pyro_vae.report.names import LABEL_PICTURES, PICTURES
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from tests.children import ROOT

IMAGES = ["reconstructions", "samples", "interpolations", "traversals"]


def make_vae(latent_dim: int, data_shape: tuple[int, ...] = (1, 8, 8), **options: object) -> VAE:
    """Untrained, with weights enlarged until the pictures of two latent vectors differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vae = VAE(data_shape, latent_dim, hidden=(32,), **options)
        with torch.no_grad():
            for p in vae.parameters():
                p.mul_(3)
    return vae


def make_history(elbo: list[float], beta: float = 1.0, validation: bool = True) -> History:
    rows = []
    for epoch, value in enumerate(elbo, start=1):
        row = {"epoch": epoch, "objective": value + 3 * (1 - beta), "train_elbo": value, "train_rate": 3.0}
        row |= {"train_distortion": -value - 3, "beta": beta}
        if validation:
            row |= {"validation_elbo": value - 1, "validation_elbo_std_error": 0.5}
            row |= {"validation_rate": 3.5, "validation_distortion": -value - 2.5}
        rows.append(row)
    return History(rows)


@pytest.fixture(autouse=True)
def small_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsne, "MAX_POINTS", 40)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dots, where what a picture shows is not looked at: drawing them takes the time."""
    monkeypatch.setattr(pictures, "DOTS_PER_INCH", 50)


HISTORY = make_history([-30.0, -26.0, -25.0])


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


def vectors(count: int = 40, labels: bool = False) -> Data:
    x = torch.rand(count, 5, generator=torch.Generator().manual_seed(0))
    return Data("vectors", Split(x.round(), torch.arange(count) % 3 if labels else None))


def names(paths: list[Path]) -> list[str]:
    return [p.stem for p in paths]


def test_the_table_has_a_row_for_each_name() -> None:
    assert tuple(pictures.TABLE) == PICTURES
    assert {*LABEL_PICTURES} < {*PICTURES}


@pytest.mark.slow
def test_names_of_files_need_no_matplotlib() -> None:
    code = "import sys, pyro_vae.runs.directory; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize(
    ("latent_dim", "expected"),
    [
        pytest.param(1, [*IMAGES, "curves", "latents", "units", "tsne", "log-px", "worst"], marks=pytest.mark.slow),
        (2, [*IMAGES, "curves", "latents", "units", "tsne", "log-px", "worst", "grid"]),
        pytest.param(3, [*IMAGES, "curves", "latents", "units", "tsne", "log-px", "worst"], marks=pytest.mark.slow),
    ],
)
def test_images_give_these_files_and_none_is_blank(
    digits: Data, tmp_path: Path, latent_dim: int, expected: list[str]
) -> None:
    assert digits.test is not None
    vae = make_vae(latent_dim)
    found = estimate(vae, digits.test.x, Estimation(num_samples=20), seed=0)
    paths = draw_pictures(vae, digits, HISTORY, tmp_path / "new" / "folder", 0, found)
    assert set(expected) <= set(PICTURES)
    assert names(paths) == expected
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)  # no temporary file stays
    for path in paths:
        height, width = imread(path).shape[:2]
        assert 600 <= width <= 2400, path
        assert (250 if path.stem == "traversals" else 400) <= height <= 1600, path  # a row of tiles for each unit
        ink = imread(path)[..., :3].mean(-1) < 0.9
        assert 0.01 < ink.mean() < 0.99, path
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        margins = [rows[0], columns[0], height - 1 - rows[-1], width - 1 - columns[-1]]
        assert max(margins) < 60, (path, margins)


@pytest.mark.parametrize(("latent_dim", "labels"), [(1, False), (1, True), (2, False), (3, True)])
@pytest.mark.usefixtures("coarse")
def test_vectors_give_no_images(tmp_path: Path, latent_dim: int, labels: bool) -> None:
    paths = draw_pictures(make_vae(latent_dim, (5,)), vectors(labels=labels), HISTORY, tmp_path)
    assert names(paths) == ["curves", "latents", "units", "tsne"]


@pytest.mark.usefixtures("coarse")
def test_no_history_no_curves_and_one_datum_no_latents(tmp_path: Path) -> None:
    found = names(draw_pictures(make_vae(2, (5,)), vectors(9), History(), tmp_path))
    assert found == ["latents", "units"]  # nor enough data for t-SNE
    one = Data("one", Split(torch.rand(1, 1, 8, 8).round()))
    assert names(draw_pictures(make_vae(1), one, History(), tmp_path)) == IMAGES


def test_colour_images_that_are_not_square(tmp_path: Path) -> None:
    x = torch.rand(25, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    vae = make_vae(2, (3, 6, 9), likelihood="normal")  # whose means leave [0, 1]
    paths = draw_pictures(vae, Data("colour", Split(x)), History(), tmp_path)
    assert names(paths) == [*IMAGES, "latents", "units", "tsne", "grid"]
    samples = imread(tmp_path / "samples.png")[..., :3]
    assert np.ptp(samples, axis=-1).max() > 0.2  # colours, not greys
    assert 1.3 < samples.shape[1] / samples.shape[0] < 1.6  # 9 by 6, with a title


@pytest.mark.slow
@pytest.mark.usefixtures("coarse")
def test_seed_decides_the_pixels(tmp_path: Path) -> None:
    vae, data = (
        make_vae(3, (1, 2, 2)),
        Data("small", Split(torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0)))),
    )
    first, again, other = (
        [p.read_bytes() for p in draw_pictures(vae, data, History(), tmp_path, s)] for s in (0, 0, 1)
    )
    assert first == again
    assert len(first) == 7
    same = [a == b for a, b in zip(first, other, strict=True)]
    # Which image is traversed depends on the seed; the KL of units depends on nothing, the order of all points is not seen.
    assert same[:4] == [False] * 4
    assert same[5] is True


@pytest.mark.usefixtures("coarse")
def test_generator_mode_and_parameters_are_left_as_they_were(tmp_path: Path) -> None:
    vae = make_vae(2, (1, 2, 2)).train()
    data = Data("small", Split(torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).round()))
    before = torch.get_rng_state(), {k: v.clone() for k, v in vae.state_dict().items()}
    assert len(draw_pictures(vae, data, History(), tmp_path, seed=5)) == 7
    assert torch.equal(torch.get_rng_state(), before[0])
    assert vae.training
    assert all(torch.equal(v, before[1][k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.usefixtures("coarse")
def test_the_model_draws_in_eval_mode_without_gradients(tmp_path: Path) -> None:
    modes = []

    class Watched(VAE):
        def encode(self, x: torch.Tensor) -> TorchDistributionMixin:
            modes.append((self.training, torch.is_grad_enabled()))
            return super().encode(x)

    vae = Watched((5,), 2, hidden=())
    for training in (True, False):
        draw_pictures(vae.train(training), vectors(), History(), tmp_path)
        assert vae.training is training
    assert len(modes) >= 2
    assert set(modes) == {(False, False)}


@pytest.mark.usefixtures("coarse")
def test_a_model_in_double_precision_takes_single_precision_data(digits: Data, tmp_path: Path) -> None:
    paths = draw_pictures(make_vae(2).double(), digits, History(), tmp_path)
    assert names(paths) == [*IMAGES, "latents", "units", "tsne", "grid"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path, _ = draw_pictures(make_vae(1, (5,)), vectors(9), History(), tmp_path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_pictures(make_vae(2, (5,)), vectors(), HISTORY, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_classes_are_picked_in_turn(digits: Data) -> None:
    assert digits.test is not None
    picked = tiles.pick(digits.test, 30)
    rows = (picked[:, None] == digits.test.x[None]).flatten(2).all(-1).int().argmax(1)
    assert digits.test.y is not None
    assert digits.test.y[rows].tolist() == list(range(10)) * 3
    assert len(tiles.pick(Split(digits.test.x[:7]), 30)) == 7


def test_reconstructions_stand_below_their_originals(digits: Data) -> None:
    class Echo(VAE):
        def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
            return 1 - x

    assert digits.test is not None
    figure = images.reconstructions(Echo((1, 8, 8), 2, hidden=()), digits.test, "test")
    shown = {tuple(image.get_extent()): np.asarray(image.get_array()) for image in figure.axes[0].images}
    tops = sorted({extent[3] for extent in shown})
    assert len(shown) == 60
    assert len(tops) == 6
    for (left, right, bottom, top), pixels in shown.items():
        if tops.index(top) % 2 == 0:
            assert np.array_equal(shown[left, right, bottom + 1, top + 1], 1 - pixels)


def test_interpolations_run_from_one_posterior_mean_to_the_other(digits: Data) -> None:
    assert digits.test is not None
    vae = make_vae(3)
    with torch.no_grad():
        axes = images.interpolations(vae, digits.test, "test").axes[0]
        row = [torch.from_numpy(np.asarray(image.get_array())).float()[None, None] for image in axes.images[:13]]
        ends = vae.encode(torch.cat([row[0], row[-1]])).mean
        expected = [mean_image(vae.decode(z[None])) for z in (ends[0], ends.mean(0), ends[1])]
    for found, wanted in zip((row[1], row[6], row[11]), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_grid_has_its_axes_the_right_way_round() -> None:
    vae = make_vae(2)
    with torch.no_grad():
        axes = images.plane(vae).axes[0]
        z1, z2 = (
            [float(t.get_text().replace("−", "-")) for t in ticks]
            for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
        )
        mosaic = np.asarray(axes.images[0].get_array())
        assert z1 == z2 == sorted(z1)
        # Column 17 and row 3 from below; imshow draws the first row at the top.
        tile = mosaic[8 * (19 - 3) : 8 * (20 - 3), 8 * 17 : 8 * 18]
        exact = torch.distributions.Normal(0.0, 1.0).icdf((torch.tensor([17.0, 3.0]) + 0.5) / 20)
        torch.testing.assert_close(torch.from_numpy(tile).float(), mean_image(vae.decode(exact))[0])
    assert [z1[17], z2[3]] == pytest.approx(exact.tolist(), abs=0.006)


def panels(history: History) -> dict[str, Axes]:
    figure: Figure = curves.curves(history)
    return dict(zip(("elbo", "rate", "distortion", "beta"), figure.axes, strict=True))


def test_curves_show_the_columns_of_the_history() -> None:
    axes = panels(HISTORY)
    shown = {k: [list(map(float, line.get_ydata())) for line in a.lines[:-1]] for k, a in axes.items()}
    assert shown == {
        "elbo": [HISTORY["train_elbo"], HISTORY["validation_elbo"]],
        "rate": [HISTORY["train_rate"], HISTORY["validation_rate"]],
        "distortion": [HISTORY["train_distortion"], HISTORY["validation_distortion"]],
        "beta": [HISTORY["beta"]],
    }
    assert axes["elbo"].lines[-1].get_xdata()[0] == HISTORY.best_epoch
    band = axes["elbo"].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-31.5, -25.5)
    assert axes["elbo"].get_ylabel() == axes["rate"].get_ylabel() == axes["distortion"].get_ylabel() == "nats per datum"


def test_the_annealed_objective_is_drawn_only_where_it_is_another_curve() -> None:
    without, annealed = (make_history([-3.0, -2.0], beta, validation=False) for beta in (1.0, 0.5))
    assert len(panels(without)["elbo"].lines) == 1
    assert list(panels(annealed)["elbo"].lines[1].get_ydata()) == annealed["objective"]


def test_bad_first_epochs_do_not_set_the_scale_and_are_named() -> None:
    axes = panels(make_history([-500.0, -30.0, *np.linspace(-25, -24, 28).tolist()]))["elbo"]
    bottom, top = axes.get_ylim()
    assert -28 < bottom < -26
    assert -24 < top < -23
    assert axes.get_title(loc="right") == "cut off in epochs 1 to 2: lowest −501"


@pytest.mark.parametrize("elbo", [[-500.0, -30.0], [-25.0] * 30, np.linspace(-30, -24, 30).tolist()])
def test_otherwise_every_epoch_is_within_the_axes(elbo: list[float]) -> None:
    for axes in panels(make_history(elbo)).values():
        bottom, top = axes.get_ylim()
        for line in axes.lines[:-1]:
            assert bottom <= min(line.get_ydata()) <= max(line.get_ydata()) <= top
        assert axes.get_title(loc="right") == ""


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


# The latent units.


def closed_form_kl(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, s^2) || N(0, 1)) = (mu^2 + s^2 - 1) / 2 - log s of each unit, mean over data."""
    with torch.no_grad():
        loc, log_scale = vae.encoder(x).double().chunk(2, dim=-1)
    return ((loc.square() + (2 * log_scale).exp() - 1) / 2 - log_scale).mean(0)


def test_units_are_drawn_by_their_kl_and_told_apart_by_activity() -> None:
    vae, data = make_vae(6, (5,)), vectors(200).train
    with torch.no_grad():
        vae.encoder.head.weight[[1, 4]] = 0  # their means are constant, their KL is not 0
        vae.encoder.head.bias[4] = 3.0
        encoded = encode(vae, data)
        assert encoded.unit_kl is not None
        figure = units.units(encoded, encoded.unit_kl, "test")
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
        axes = units.traversals(vae, Split(x), kl, "test").axes[0]
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
        axes = units.traversals(make_vae(30, (1, 2, 2)), Split(torch.rand(3, 1, 2, 2)), kl, "test").axes[0]
    assert [int(t.get_text()[4:].split("}")[0]) - 1 for t in axes.get_yticklabels()] == kl.topk(10).indices.tolist()
    assert "10 of 30 units" in axes.get_title()


def test_without_independent_units_there_is_no_kl_of_each(tmp_path: Path) -> None:
    class Correlated(torch.nn.Module):
        num_params = 2

        def forward(self, params: torch.Tensor) -> TorchDistributionMixin:
            return dist.MultivariateNormal(params, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))

    vae = make_vae(2, (1, 2, 2), posterior=Correlated())
    data = Data("small", Split(torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))))
    assert names(draw_pictures(vae, data, History(), tmp_path)) == [*IMAGES[:3], "latents", "tsne", "grid"]


# t-SNE.


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


# log p(x) of each datum.


def make_estimate(log_px: torch.Tensor, pareto_k: torch.Tensor, num_samples: int = 1000) -> Estimate:
    columns = [f.name for f in dataclasses.fields(Estimate) if f.name not in ("log_px", "pareto_k", "num_samples")]
    rest = dict.fromkeys(columns, torch.zeros_like(log_px)) | {
        "draws": torch.full(log_px.shape, num_samples),
        "num_pilot": 0,
    }
    return Estimate(log_px=log_px, pareto_k=pareto_k, num_samples=num_samples, **rest)


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


def test_an_estimate_of_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected log p\\(x\\) of all 40 training data, got 3"):
        draw_pictures(make_vae(2, (5,)), vectors(), History(), tmp_path, 0, make_estimate(torch.ones(3), torch.ones(3)))


# Where data lie, and how many.


class CountingReader:
    """``count`` images of 2 x 2 that are made when they are read."""

    def __init__(self, count: int) -> None:
        self.shape, self.read_rows = (count, 1, 2, 2), 0

    def read(self, rows: np.ndarray) -> torch.Tensor:
        self.read_rows += len(rows)
        bits = torch.from_numpy(rows)[:, None] // torch.tensor([1, 2, 4, 8]) % 2
        return bits.float().reshape(-1, 1, 2, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("coarse")
def test_stored_data_give_the_same_pictures_as_tensors(tmp_path: Path) -> None:
    vae, stored = make_vae(2, (1, 2, 2)), Stored(CountingReader(40))
    drawn = []
    for folder, x in (("stored", stored), ("tensor", stored.in_memory())):
        split, found = Split(x, torch.arange(40) % 3), estimate(vae, x, Estimation(num_samples=20), seed=0)
        paths = draw_pictures(vae, Data("some", split), HISTORY, tmp_path / folder, 0, found)
        drawn.append({path.name: path.read_bytes() for path in paths})
    assert len(drawn[0]) == 11
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("coarse")
def test_of_many_data_only_so_many_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MAX_ROWS", 100)
    reader = CountingReader(2_000_000)
    data = Data("many", Split(Stored(reader), torch.arange(2_000_000) % 7))
    vae = make_vae(2, (1, 2, 2))
    assert len(draw_pictures(vae, data, History(), tmp_path)) == 8
    assert reader.read_rows < 250  # 100 encoded, 40 for t-SNE, 43 for the rest
    with torch.no_grad():
        encoded = encode(vae, data.train)
    assert encoded.rows.tolist() == list(range(0, 2_000_000, 20_000))
    assert encoded.amount() == "100 of 2,000,000"


@pytest.mark.slow
def test_a_run_needs_no_home_and_no_display(tmp_path: Path) -> None:
    """HOME is a file, so nothing can be kept in it; DISPLAY names a screen that is not there. Not a word of it is said.

    Nor do pictures import pyplot, which would look for a screen, and keep every figure.
    """
    (tmp_path / "home").touch()
    hidden = {"MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"HOME": str(tmp_path / "home"), "DISPLAY": ":99", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    words = "--epochs 1 --hidden 8 --latent-dim 2 --num-samples 30 --device cpu --quiet --run-dir run".split()
    code = (
        "import sys, torch, pathlib\n"
        "from pyro_vae import report, train\n"
        "from pyro_vae.data import Data, Split\n"
        "from pyro_vae.inference import History\n"
        "from pyro_vae.models.vae import VAE\n"
        "data = Data('small', Split(torch.rand(12, 5)))\n"
        "assert len(report.draw_pictures(VAE((5,), 3), data, History(), pathlib.Path('few'))) == 3\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == {*PICTURES} - {*LABEL_PICTURES}


def test_large_images_are_averaged_down_and_decoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(320.0).div(320).expand(2, 1, 480, 320)
    small = tiles.shrunk(ramp)
    assert small.shape == (2, 1, 160, 107)
    torch.testing.assert_close(small[0, 0, 80], torch.linspace(0.5, 319.5, 107) / 320 * 0.997, atol=0.01, rtol=0)
    assert tiles.shrunk(ramp[..., :100, :100]).shape == (2, 1, 100, 100)
    vae, z = make_vae(3), torch.randn(5, 2, 3)
    whole = tiles.decoded(vae, z)
    monkeypatch.setattr(tiles, "rows_of", lambda shape: 3)
    torch.testing.assert_close(tiles.decoded(vae, z), whole)
    torch.testing.assert_close(whole, mean_image(vae.decode(z)).detach())
