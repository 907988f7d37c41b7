"""A user's own files and folders: what comes out of them, number by number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyro_vae.data import Data, load
from pyro_vae.data import loading as sources_module
from pyro_vae.data.files import folders as folders_module
from pyro_vae.data.labels import encode_labels
from pyro_vae.data.stored import Stored
from tests.children import ROOT

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (30, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
TABLE = RNG.normal(size=(30, 4))


def plain(path: Path, **kwargs) -> Data:
    return load(path, mode="none", **kwargs)


def whole(data: Data) -> torch.Tensor:
    """All data of all splits, in an order of their own."""
    return ordered(torch.cat([split.x[:] for split in data.splits.values()]))


def ordered(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(1)
    return flat[np.lexsort(flat.numpy().T)]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (BYTES, BYTES[:, None] / 255.0),
        (BYTES.astype(np.float64), BYTES[:, None] / 255.0),
        (BYTES.astype(np.int32), BYTES[:, None] / 255.0),
        (BYTES / 255.0, BYTES[:, None] / 255.0),
        ((BYTES / 255.0).astype(np.float16), (BYTES / 255.0).astype(np.float16)[:, None]),
        (BYTES > 99, (BYTES > 99)[:, None]),
        ((BYTES > 99).astype(np.uint8), (BYTES > 99)[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2) / 255.0),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2) / 255.0),
        (COLOUR[..., :1], COLOUR[..., :1].transpose(0, 3, 1, 2) / 255.0),
        (np.asfortranarray(BYTES), BYTES[:, None] / 255.0),
        (BYTES.astype(">f4"), BYTES[:, None] / 255.0),
        (BYTES.reshape(30, 30), BYTES.reshape(30, 30) / 255.0),
        (TABLE, TABLE),
        (np.abs(TABLE) * 50, np.abs(TABLE) * 50),
    ],
    ids=[
        "bytes", "whole-floats", "int32", "unit-floats", "float16", "bool", "binary-bytes", "channels-last",
        "channels-first", "one-channel-last", "fortran", "big-endian", "rows-of-bytes", "table",
        "table-beyond-255",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
def test_an_array_becomes_data(tmp_path, array, expected, kind):
    path = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[kind](path, array)
    data = plain(path)
    assert data.data_shape == expected.shape[1:]
    assert [len(split.x) for split in data.splits.values()] == [24, 3, 3]
    assert torch.equal(whole(data), ordered(torch.tensor(expected.astype(np.float32))))
    assert f"{array.dtype}" in data.description


def test_the_split_is_by_seed_and_nothing_is_lost(tmp_path):
    np.save(tmp_path / "a.npy", BYTES)
    one, again, other = (plain(tmp_path / "a.npy", seed=seed) for seed in (1, 1, 2))
    for split in one.splits:
        assert torch.equal(one.splits[split].x, again.splits[split].x)
        assert not torch.equal(one.splits[split].x, other.splits[split].x)
    assert one.fingerprint() == again.fingerprint()
    assert one.fingerprint() != other.fingerprint()
    assert torch.equal(whole(one), whole(other))


def test_val_size_and_its_bounds(tmp_path):
    np.save(tmp_path / "a.npy", BYTES)
    assert [len(s.x) for s in plain(tmp_path / "a.npy", val_size=0).splits.values()] == [27, 3]
    assert [len(s.x) for s in plain(tmp_path / "a.npy", val_size=26).splits.values()] == [1, 26, 3]
    with pytest.raises(ValueError, match="val_size: expected between 0 and 26"):
        plain(tmp_path / "a.npy", val_size=27)


def test_named_arrays_of_an_npz_are_the_splits_with_their_labels(tmp_path):
    names = {"x_train": BYTES[:20], "y_train": np.arange(20) % 4, "x_test": BYTES[20:], "y_test": np.arange(10) % 4}
    np.savez(tmp_path / "a.npz", **names)
    data = plain(tmp_path / "a.npz", val_size=5)
    assert torch.equal(data.test.x, torch.tensor(BYTES[20:, None] / np.float32(255)))
    assert data.test.y.tolist() == names["y_test"].tolist()
    # Labels go with their images: each image is found among the originals, and has that label.
    for split in (data.train, data.validation):
        for x, y in zip(split.x, split.y, strict=True):
            row = int(np.argmin(np.abs(BYTES[:20] / 255.0 - x[0].numpy()).sum((1, 2))))
            assert int(y) == row % 4


def test_an_npz_may_bring_its_validation(tmp_path):
    np.savez(tmp_path / "a.npz", train=BYTES[:20], val=BYTES[20:25], test=BYTES[25:])
    data = plain(tmp_path / "a.npz")
    assert torch.equal(data.validation.x, torch.tensor(BYTES[20:25, None] / np.float32(255)))
    assert torch.equal(data.test.x, torch.tensor(BYTES[25:, None] / np.float32(255)))
    assert plain(tmp_path / "a.npz", val_size=0).validation is None
    with pytest.raises(ValueError, match="has its own 5 validation data, got 7"):
        plain(tmp_path / "a.npz", val_size=7)


def test_array_chooses_one(tmp_path):
    np.savez(tmp_path / "a.npz", one=BYTES, two=TABLE)
    assert plain(tmp_path / "a.npz", array="one").data_shape == (1, 6, 5)
    assert plain(tmp_path / "a.npz", array="two").data_shape == (4,)
    with pytest.raises(ValueError, match="holds 2 arrays"):
        plain(tmp_path / "a.npz")


@pytest.mark.parametrize("labels", [np.arange(30) % 3, np.array(["c", "a", "b"] * 10)], ids=["numbers", "text"])
def test_labels_beside_the_only_array(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=BYTES, labels=labels)
    data = plain(tmp_path / "a.npz")
    found = torch.cat([split.y for split in data.splits.values()]).bincount()
    assert found.tolist() == [10, 10, 10]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_a_csv_is_a_table(tmp_path, separator, header):
    path = tmp_path / "a.csv"
    pd.DataFrame(TABLE, columns=list("abcd")).to_csv(path, sep=separator, header=header, index=False)
    assert torch.allclose(whole(plain(path)), ordered(torch.tensor(TABLE, dtype=torch.float32)))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_of_labels_and_one_of_row_numbers(tmp_path, suffix):
    frame = pd.DataFrame(TABLE, columns=list("abcd")).assign(label=["x", "y"] * 15)
    path = tmp_path / f"a.{suffix}"
    frame.to_csv(path) if suffix == "csv" else frame.to_parquet(path)
    data = plain(path)
    assert data.data_shape == (4,)
    assert ("left out the first column" in data.description) == (suffix == "csv")
    for split in data.splits.values():
        for x, y in zip(split.x, split.y, strict=True):
            assert int(y) == int(np.argmin(np.abs(TABLE - x.numpy()).sum(1))) % 2


def test_rows_of_a_table_become_images(tmp_path):
    pd.DataFrame(BYTES.reshape(30, 30)).to_csv(tmp_path / "a.csv", index=False)
    data = plain(tmp_path / "a.csv", image_size=(6, 5))
    assert data.data_shape == (1, 6, 5)
    assert torch.equal(whole(data), ordered(torch.tensor(BYTES[:, None] / np.float32(255))))
    with pytest.raises(ValueError, match="images with 30 numbers, got 7 x 5"):
        plain(tmp_path / "a.csv", image_size=(7, 5))


def test_binarizing_a_table_of_other_numbers_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", TABLE)
    with pytest.raises(ValueError, match="--likelihood normal"):
        load(tmp_path / "a.npy", mode="dynamic")


def test_image_size_scales_and_crops_around_the_centre(tmp_path):
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (9, 20, 1))  # brighter to the right: 20 high, 40 wide
    np.save(tmp_path / "a.npy", ramp)
    data = plain(tmp_path / "a.npy", image_size=(10,))
    assert data.data_shape == (1, 10, 10)
    # Halved to 10 x 20, of which columns 5 to 14 are kept; away from the edges antialiasing keeps a ramp a ramp.
    expected = (2 * np.arange(5, 15) + 0.5) * 6 / 255
    assert torch.allclose(data.test.x[0, 0, 5], torch.tensor(expected, dtype=torch.float32), atol=1e-3)


# Folders


def picture(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    for k, pixels in enumerate(BYTES):
        picture(tmp_path / "images" / f"{k:03}.png", pixels)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / ".hidden.png").write_text("not an image")
    return tmp_path / "images"


def test_a_folder_of_images(folder):
    data = plain(folder)
    assert data.data_shape == (1, 6, 5)
    assert torch.equal(whole(data), ordered(torch.tensor(BYTES[:, None] / np.float32(255))))
    assert data.train.y is None


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_folder_too_large_for_memory_gives_the_same_images(folder, monkeypatch, limit):
    before = plain(folder)
    monkeypatch.setattr(folders_module, "KEEP_BYTES", limit)
    monkeypatch.setattr(sources_module, "IN_MEMORY_BYTES", limit)
    after = plain(folder)
    assert isinstance(after.train.x, Stored) == (limit == 0)
    for split in before.splits:
        assert torch.equal(before.splits[split].x[:], after.splits[split].x[:])


def test_colour_in_one_image_makes_all_coloured(folder):
    picture(folder / "colour.png", COLOUR[0])
    data = plain(folder)
    assert data.data_shape == (3, 6, 5)
    grey = np.repeat(BYTES[:, None], 3, 1)
    both = np.concatenate([grey, COLOUR[:1].transpose(0, 3, 1, 2)])
    assert torch.equal(whole(data), ordered(torch.tensor(both / np.float32(255))))


def test_sixteen_bits_and_orientation(tmp_path):
    picture(tmp_path / "a" / "deep.png", BYTES[0].astype(np.uint16) * 257)
    lying = Image.fromarray(np.rot90(BYTES[1]).copy())
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    lying.save(tmp_path / "a" / "lying.png", exif=exif)
    picture(tmp_path / "a" / "plain.png", BYTES[2])
    data = plain(tmp_path / "a")
    assert torch.equal(whole(data), ordered(torch.tensor(BYTES[:3, None] / np.float32(255))))


def test_folders_are_labels_and_splits(tmp_path):
    for k, pixels in enumerate(BYTES):
        split, label = ("train", "test")[k % 3 == 0], ("ant", "bee")[k % 2]
        picture(tmp_path / "a" / split / label / f"{k}.png", pixels)
    data = plain(tmp_path / "a", val_size=0)
    assert (len(data.train.x), len(data.test.x)) == (20, 10)
    for split in (data.train, data.test):
        for x, y in zip(split.x, split.y, strict=True):
            row = int(np.argmin(np.abs(BYTES / 255.0 - x[0].numpy()).sum((1, 2))))
            assert int(y) == row % 2
            assert (row % 3 == 0) == (split is data.test)


def test_images_of_different_sizes_need_an_image_size(folder):
    picture(folder / "large.png", np.repeat(np.repeat(BYTES[0], 2, 0), 2, 1))
    with pytest.raises(ValueError, match=r"6 x 5 \(000.png\) and 12 x 10 \(large.png\), height x width"):
        plain(folder)
    assert plain(folder, image_size=(6, 5)).data_shape == (1, 6, 5)


@pytest.mark.parametrize("content", [b"", b"text", "half"], ids=["empty", "text", "truncated"])
def test_a_broken_image_is_named_or_left_out(folder, content):
    good = (folder / "007.png").read_bytes()
    (folder / "007.png").write_bytes(good[: len(good) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=r"007\.png.*--skip-broken"):
        plain(folder)
    data = plain(folder, skip_broken=True)
    assert "left out 1 broken" in data.description
    kept = np.delete(BYTES, 7, 0)
    assert torch.equal(whole(data), ordered(torch.tensor(kept[:, None] / np.float32(255))))


def test_a_folder_of_broken_images_has_none(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="and 3 more of 4"):
        plain(tmp_path, skip_broken=True)


# Memory

PEAK = """
import resource, sys
from pyro_vae import train
code = train.main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
sys.exit(code)
"""


def peak_memory(*words: str) -> float:
    """GiB that training a small model takes at most, in a process of its own."""
    command = (
        "--likelihood normal --latent-dim 2 --hidden 4 --epochs 1 --num-samples 2 --threads 1 --device cpu".split()
    )
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command, *words], capture_output=True, text=True, cwd=root, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split("PEAK")[1])


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32", reason="a sparse file is made by seeking, which NTFS does not leave sparse"
)
def test_an_array_of_20_gb_takes_less_than_2_gb(tmp_path):
    shape = (25_500, 3, 256, 256)
    array = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=shape)
    array[::1000, :, 5, 5] = 0.5
    del array
    assert (tmp_path / "a.npy").stat().st_size > 19.9e9
    words = ["--dataset", str(tmp_path / "a.npy"), "--run-dir", str(tmp_path / "run"), "--batch-size", "16"]
    assert peak_memory(*words, "--val-size", "300") < 2


@pytest.mark.slow
def test_a_folder_of_100_000_images_takes_bounded_memory(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)
    for k in range(100_000):
        name = tmp_path / "images" / f"{k // 1000}" / f"{k}.png"
        if k < 100:
            picture(name, pixels[k])
        else:
            name.parent.mkdir(parents=True, exist_ok=True)
            name.hardlink_to(tmp_path / "images" / "0" / f"{k % 100}.png")
    # As float32 they would take 4.9 GB, as bytes 1.2.
    words = ["--dataset", str(tmp_path / "images"), "--run-dir", str(tmp_path / "run"), "--batch-size", "500"]
    assert peak_memory(*words) < 2


# Labels


def test_labels_are_the_same_in_every_split(tmp_path):
    """Also where a split lacks some of them."""
    np.savez(
        tmp_path / "a.npz",
        x_train=BYTES[:20], y_train=np.array(["a", "b", "c", "d"] * 5), x_test=BYTES[20:], y_test=np.array(["b", "d"] * 5),
    )  # fmt: skip
    data = plain(tmp_path / "a.npz", val_size=0)
    assert data.train.y.tolist() == [0, 1, 2, 3] * 5
    assert data.test.y.tolist() == [1, 3] * 5
    assert "4 labels: 0 = a, 1 = b, 2 = c, 3 = d" in data.description
    for k, pixels in enumerate(BYTES):
        split, label = ("train", "abc"[k % 3]) if k < 20 else ("test", "bc"[k % 2])
        picture(tmp_path / "f" / split / label / f"{k:02}.png", pixels)
    data = plain(tmp_path / "f", val_size=0)
    assert sorted(set(data.train.y.tolist())) == [0, 1, 2]
    assert sorted(set(data.test.y.tolist())) == [1, 2]


@pytest.mark.parametrize(
    ("labels", "expected", "key"),
    [
        ([3, 1, 3], [3, 1, 3], "2 labels"),
        ([10, 2000, 5], [1, 2, 0], "3 labels: 0 = 5, 1 = 10, 2 = 2000"),
        (["class-10", "class-2", "class-2"], [1, 0, 0], "2 labels: 0 = class-2, 1 = class-10"),
        ([-1.0, 0.0, 2.0], [-1, 0, 2], "2 labels"),
        ([-1.0, 2000.0, 5.0], [-1, 1, 0], "2 labels: 0 = 5, 1 = 2000"),
        ([0.5, 2.5, 0.5], [[0.5], [2.5], [0.5]], "vectors of 1 number in the place of labels"),
        (["-1", "cat", "ant"], [-1, 1, 0], "2 labels: 0 = ant, 1 = cat"),
        ([-1, -1], [-1, -1], "0 labels"),
        ([True, False, True], [1, 0, 1], "2 labels"),
        ([[4], [4], [0]], [4, 4, 0], "2 labels"),
    ],
)
def test_labels_of_any_kind_are_numbered_in_their_order(labels, expected, key):
    (found,), words = encode_labels([np.array(labels)])
    assert found.tolist() == expected
    assert words == key


# What looks like data and is something else


def test_a_csv_may_begin_with_blank_lines_and_hold_booleans(tmp_path):
    (tmp_path / "a.csv").write_text("\n\n1,2,True\n3,4,False\n5,6,True\n7,8,False\n")
    expected = ordered(torch.tensor([[1, 2, 1], [3, 4, 0], [5, 6, 1], [7, 8, 0]]) / 255)
    assert torch.equal(whole(plain(tmp_path / "a.csv")), expected)


def test_nullable_columns_of_parquet_are_numbers(tmp_path):
    frame = (
        pd.DataFrame(TABLE, columns=list("abcd")).astype({"a": "Float64"}).assign(e=pd.array([1, 0] * 15, dtype="Int8"))
    )
    frame.to_parquet(tmp_path / "a.parquet")
    expected = np.concatenate([TABLE, np.array([[1], [0]] * 15)], 1)
    assert torch.allclose(whole(plain(tmp_path / "a.parquet")), ordered(torch.tensor(expected, dtype=torch.float32)))


def test_links_to_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "images").symlink_to(folder)
    (folder / "loop").symlink_to(folder)
    assert torch.equal(whole(plain(tmp_path / "links")), whole(plain(folder)))
    assert len(whole(plain(folder))) == 30


def test_changed_pixels_and_labels_are_other_data(tmp_path):
    images, labels = BYTES.copy(), np.arange(30) % 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    before = plain(tmp_path / "a.npz").fingerprint()
    images[17, 2, 3] ^= 1
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    pixels = plain(tmp_path / "a.npz").fingerprint()
    changed = [key for key in before if before[key] != pixels[key]]
    assert len(changed) == 1
    assert changed[0].startswith("checksum_")
    images[17, 2, 3] ^= 1
    labels[4] = 0
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    after = plain(tmp_path / "a.npz").fingerprint()
    assert [key[:7] for key in before if before[key] != after[key]] == ["labels_"]
