from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_vae.data import Data, Split, load
from pyro_vae.inference.loop import History
from pyro_vae.models.vae import VAE
from pyro_vae.report import curves, draw_pictures, images, latents, pictures

IMAGES = ["reconstructions", "samples", "interpolations"]


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


HISTORY = make_history([-30.0, -26.0, -25.0])


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


def vectors(count: int = 40, labels: bool = False) -> Data:
    x = torch.rand(count, 5, generator=torch.Generator().manual_seed(0))
    return Data("vectors", Split(x.round(), torch.arange(count) % 3 if labels else None))


def names(paths: list[Path]) -> list[str]:
    return [p.stem for p in paths]


@pytest.mark.parametrize(
    ("latent_dim", "expected"),
    [
        (1, [*IMAGES, "curves", "latents"]),
        (2, [*IMAGES, "curves", "latents", "grid"]),
        (3, [*IMAGES, "curves", "latents"]),
    ],
)
def test_images_give_these_files_and_none_is_blank(
    digits: Data, tmp_path: Path, latent_dim: int, expected: list[str]
) -> None:
    paths = draw_pictures(make_vae(latent_dim), digits, HISTORY, tmp_path / "new" / "folder")
    assert names(paths) == expected
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)  # no temporary file stays
    for path in paths:
        height, width = imread(path).shape[:2]
        assert 600 <= width <= 2400, path
        assert 400 <= height <= 1600, path
        ink = imread(path)[..., :3].mean(-1) < 0.9
        assert 0.01 < ink.mean() < 0.99, path
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        margins = [rows[0], columns[0], height - 1 - rows[-1], width - 1 - columns[-1]]
        assert max(margins) < 60, (path, margins)


@pytest.mark.parametrize(("latent_dim", "labels"), [(1, False), (1, True), (2, False), (3, True)])
def test_vectors_give_only_curves_and_latents(tmp_path: Path, latent_dim: int, labels: bool) -> None:
    paths = draw_pictures(make_vae(latent_dim, (5,)), vectors(labels=labels), HISTORY, tmp_path)
    assert names(paths) == ["curves", "latents"]


def test_no_history_no_curves_and_one_datum_no_latents(tmp_path: Path) -> None:
    assert names(draw_pictures(make_vae(2, (5,)), vectors(), History(), tmp_path)) == ["latents"]
    one = Data("one", Split(torch.rand(1, 1, 8, 8).round()))
    assert names(draw_pictures(make_vae(1), one, History(), tmp_path)) == IMAGES


def test_colour_images_that_are_not_square(tmp_path: Path) -> None:
    x = torch.rand(25, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    vae = make_vae(2, (3, 6, 9), likelihood="normal")  # whose means leave [0, 1]
    paths = draw_pictures(vae, Data("colour", Split(x)), History(), tmp_path)
    assert names(paths) == [*IMAGES, "latents", "grid"]
    samples = imread(tmp_path / "samples.png")[..., :3]
    assert np.ptp(samples, axis=-1).max() > 0.2  # colours, not greys
    assert 1.3 < samples.shape[1] / samples.shape[0] < 1.6  # 9 by 6, with a title


def test_seed_decides_the_pixels(tmp_path: Path) -> None:
    vae, data = (
        make_vae(3, (1, 2, 2)),
        Data("small", Split(torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0)))),
    )
    first, again, other = (
        [p.read_bytes() for p in draw_pictures(vae, data, History(), tmp_path, s)] for s in (0, 0, 1)
    )
    assert first == again
    assert all(a != b for a, b in zip(first[:3], other[:3], strict=True))


def test_generator_mode_and_parameters_are_left_as_they_were(tmp_path: Path) -> None:
    vae = make_vae(2, (1, 2, 2)).train()
    data = Data("small", Split(torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).round()))
    before = torch.get_rng_state(), {k: v.clone() for k, v in vae.state_dict().items()}
    assert len(draw_pictures(vae, data, History(), tmp_path, seed=5)) == 5
    assert torch.equal(torch.get_rng_state(), before[0])
    assert vae.training
    assert all(torch.equal(v, before[1][k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


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
    assert modes == [(False, False)] * 2


def test_a_model_in_double_precision_takes_single_precision_data(digits: Data) -> None:
    assert digits.test is not None
    with torch.no_grad():
        figures = dict(pictures._figures(make_vae(2).double(), digits.test, "test", History()))
    assert list(figures) == [*IMAGES, "latents", "grid"]


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys, torch, pathlib\n"
        "from pyro_vae.data import Data, Split\n"
        "from pyro_vae.inference.loop import History\n"
        "from pyro_vae.models.vae import VAE\n"
        "from pyro_vae.report import draw_pictures\n"
        "data = Data('small', Split(torch.rand(4, 1, 2, 2)))\n"
        "assert len(draw_pictures(VAE((1, 2, 2), 3), data, History(), pathlib.Path(sys.argv[1]))) == 4\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(pictures.__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (path,) = draw_pictures(make_vae(1, (5,)), vectors(), History(), tmp_path)
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
    picked = images._pick(digits.test, 30)
    rows = (picked[:, None] == digits.test.x[None]).flatten(2).all(-1).int().argmax(1)
    assert digits.test.y is not None
    assert digits.test.y[rows].tolist() == list(range(10)) * 3
    assert len(images._pick(Split(digits.test.x[:7]), 30)) == 7


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
        expected = [images.mean_image(vae.decode(z[None])) for z in (ends[0], ends.mean(0), ends[1])]
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
        torch.testing.assert_close(torch.from_numpy(tile).float(), images.mean_image(vae.decode(exact))[0])
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
        axes = latents.latents(vae, data, "test").axes[0]
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
        axes = latents.latents(make_vae(2, (5,)), Split(x, torch.arange(60) % 20), "test").axes[0]
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
