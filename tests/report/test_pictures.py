"""The pictures of a run: which files are written, from which draws, of which data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.image import imread
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_vae.data import Data, Split, Stored
from pyro_vae.inference import History
from pyro_vae.models.vae import VAE
from pyro_vae.report import draw_pictures, pictures
from pyro_vae.report.figures import tiles
from pyro_vae.report.figures.encoded import encode
from pyro_vae.report.picture_names import LABEL_PICTURES, PICTURES
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from tests.children import ROOT
from tests.report.examples import (
    HISTORY,
    IMAGES,
    make_estimate,
    make_vae,
    names,
    vectors,
)


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
@pytest.mark.thin(2)
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


def test_without_independent_units_there_is_no_kl_of_each(tmp_path: Path) -> None:
    class Correlated(torch.nn.Module):
        num_params = 2

        def forward(self, params: torch.Tensor) -> TorchDistributionMixin:
            return dist.MultivariateNormal(params, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))

    vae = make_vae(2, (1, 2, 2), posterior=Correlated())
    data = Data("small", Split(torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))))
    assert names(draw_pictures(vae, data, History(), tmp_path)) == [*IMAGES[:3], "latents", "tsne", "grid"]


def test_an_estimate_of_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected log p\\(x\\) of all 40 training data, got 3"):
        draw_pictures(make_vae(2, (5,)), vectors(), History(), tmp_path, 0, make_estimate(torch.ones(3), torch.ones(3)))


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
