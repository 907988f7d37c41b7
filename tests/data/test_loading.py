from __future__ import annotations

from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from pyro_vae.data import Data, Split, load
from pyro_vae.data.loading import data_folders

SPLITS = ("train", "validation", "test")


def images(split: Split) -> list[bytes]:
    """Each grey image of ``digits`` as bytes, to be counted and compared."""
    return [row.numpy().tobytes() for row in (split.x * 16).byte().reshape(len(split.x), -1)]


def is_binary(x: torch.Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def same(one: Data, other: Data) -> dict[str, bool]:
    return {s: torch.equal(getattr(one, s).x, getattr(other, s).x) for s in SPLITS}


@pytest.mark.parametrize(
    ("val_size", "sizes", "words"),
    [
        (None, (1437, 180, 180), "1,437 train, 180 validation, 180 test"),
        (0, (1617, None, 180), "1,617 train, 180 test"),
        (17, (1600, 17, 180), "1,600 train, 17 validation, 180 test"),
        (1616, (1, 1616, 180), "1 train, 1,616 validation, 180 test"),
    ],
)
def test_sizes_of_digits(val_size, sizes, words):
    data = load("digits", val_size=val_size)
    assert tuple(None if getattr(data, s) is None else len(getattr(data, s).x) for s in SPLITS) == sizes
    assert data.sizes == words
    assert data.data_shape == (1, 8, 8)
    assert data.train.x.dtype == torch.float32


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("val_size", [None, 0, 17])
def test_splits_partition_the_set_and_labels_stay_with_their_images(val_size, seed):
    pixels, labels = load_digits(return_X_y=True)
    whole = dict(zip([row.tobytes() for row in pixels.astype("uint8")], labels.tolist(), strict=True))
    assert len(whole) == 1797  # no image is there twice, so that the counts below decide
    data = load("digits", val_size=val_size, mode="none", seed=seed)
    splits = [split for s in SPLITS if (split := getattr(data, s)) is not None]
    found = Counter(image for split in splits for image in images(split))
    assert found == Counter(whole.keys())
    for split in splits:
        assert [whole[image] for image in images(split)] == split.y.tolist()


def test_grey_values_are_between_0_and_1():
    data = load("digits", mode="none")
    assert (float(data.train.x.min()), float(data.train.x.max())) == (0.0, 1.0)


def test_the_test_images_are_the_same_for_every_seed_and_val_size():
    first = load("digits", mode="none").test
    for seed in (0, 1, 2):
        for val_size in (None, 0, 17):
            other = load("digits", mode="none", seed=seed, val_size=val_size).test
            assert torch.equal(first.x, other.x)
            assert torch.equal(first.y, other.y)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_binarized_test_images_do_not_depend_on_val_size(mode):
    first = load("digits", mode=mode, seed=4)
    for val_size in (0, 17, 1000):
        assert torch.equal(first.test.x, load("digits", mode=mode, seed=4, val_size=val_size).test.x)
    assert not torch.equal(first.test.x, load("digits", mode=mode, seed=5).test.x)


@pytest.mark.parametrize("mode", ["dynamic", "static", "threshold", "none"])
def test_a_seed_gives_the_same_data_and_another_one_another_validation(mode):
    one, again, other = (load("digits", mode=mode, seed=seed) for seed in (3, 3, 4))
    assert same(one, again) == {"train": True, "validation": True, "test": True}
    assert not same(one, other)["validation"]
    grey, other_grey = (Counter(images(load("digits", mode="none", seed=seed).validation)) for seed in (3, 4))
    assert grey != other_grey


def test_dynamic_keeps_grey_training_images_and_draws_the_others_once():
    data = load("digits", mode="dynamic", seed=2)
    grey = load("digits", mode="none", seed=2)
    assert torch.equal(data.train.x, grey.train.x)
    assert not is_binary(data.train.x)
    assert is_binary(data.validation.x)
    assert is_binary(data.test.x)
    assert (data.redraw, data.binarize) == (True, "dynamic")


def test_static_draws_everything_once():
    data, grey = load("digits", mode="static", seed=2), load("digits", mode="none", seed=2)
    assert not data.redraw
    for s in SPLITS:
        drawn, source = getattr(data, s).x.double(), getattr(grey, s).x.double()
        assert is_binary(drawn)
        assert torch.equal(drawn[(source == 0) | (source == 1)], source[(source == 0) | (source == 1)])
        error = (source * (1 - source)).sum().sqrt()
        assert abs(float(drawn.sum() - source.sum())) < 4 * float(error)
        assert not torch.equal(drawn, (source > 0.5).double())


def test_threshold_and_none():
    grey, data = load("digits", mode="none"), load("digits", mode="threshold")
    assert (grey.redraw, data.redraw) == (False, False)
    for s in SPLITS:
        assert torch.equal(getattr(data, s).x, (getattr(grey, s).x > 0.5).float())


def test_to_moves_the_pixels_and_keeps_the_rest():
    moved = load("digits", val_size=0).to(torch.device("meta"))
    assert moved.train.x.device.type == moved.test.x.device.type == "meta"
    assert moved.validation is None
    assert moved.sizes == "1,617 train, 180 test"


def test_unknown_names_list_the_known_and_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'digit'") as caught:
        load("digit")
    assert str(caught.value).startswith("unknown data set 'digit': expected one of celeba, cifar10, digits, ")
    assert "did you mean 'digits'?" in str(caught.value)
    with pytest.raises(ValueError, match="unknown binarization 'thresh'") as caught:
        load("digits", mode="thresh")
    assert str(caught.value).endswith("expected one of dynamic, none, static, threshold; did you mean 'threshold'?")


@pytest.mark.parametrize("val_size", [1617, 5000, -1])
def test_a_val_size_that_leaves_no_training_images_is_refused(val_size):
    with pytest.raises(ValueError, match=f"val_size: expected between 0 and 1616 for digits, got {val_size}"):
        load("digits", val_size=val_size)


def test_loading_leaves_the_callers_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load("digits", mode="static")
    assert torch.equal(torch.rand(3), expected)


def test_the_folders_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "there"))
    assert data_folders() == (tmp_path / "there", tmp_path / "cache" / "pyro_vae")
    with pytest.raises(ValueError, match="there"):
        load("mnist", download=False)
    monkeypatch.delenv("PYRO_VAE_DATA")
    assert data_folders() == (tmp_path / "cache" / "pyro_vae",)
    assert data_folders("~/mine") == (tmp_path / "mine",)


def test_mnist_without_its_files_says_so_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^mnist: found no files in") as caught:
        load("mnist", data_dir=tmp_path, download=False)
    sentence = str(caught.value)
    assert "\n" not in sentence
    fetch = f"python -m pyro_vae.data mnist --data-dir {tmp_path}"
    for word in (str(tmp_path / "MNIST" / "raw"), "--data-dir,", "--download,", fetch, "--dataset digits,"):
        assert word in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not an image file", b"\x00\x00\x08\x03\x00\x00\xea\x60"], ids=repr)
def test_mnist_with_broken_files_says_so_in_one_sentence(tmp_path, content):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{stem}-ubyte").write_bytes(content)
    for download in (False, True):
        with pytest.raises(ValueError, match=rf"^mnist: the files in {raw} cannot be read \(.+\);"):
            load("mnist", data_dir=tmp_path, download=download)
    assert {path.read_bytes() for path in raw.iterdir()} == {content}  # no one's files are written over


@pytest.mark.parametrize(
    ("val_size", "sizes"), [(0, "60,000 train, 10,000 test"), (None, "50,000 train, 10,000 validation, 10,000 test")]
)
def test_mnist(data_dir, val_size, sizes):
    data = load("mnist", data_dir=data_dir, download=False, val_size=val_size, mode="none")
    assert data.sizes == sizes
    assert data.data_shape == (1, 28, 28)
    assert (float(data.train.x.min()), float(data.train.x.max())) == (0.0, 1.0)
    # The mean grey value of MNIST's 60,000 training images, known from every tutorial's normalization; with 10,000
    # of them set aside, 4 standard errors of the mean over images.
    per_image = data.train.x.mean((1, 2, 3), dtype=torch.float64)
    assert float(per_image.mean()) == pytest.approx(
        0.1307, abs=5e-5 if val_size == 0 else 4 * float(per_image.std()) / 224
    )
    assert data.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
