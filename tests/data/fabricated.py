"""Small data sets in the formats of the real ones: as they lie in a folder, and as their servers give them."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from pyro_vae.data.named import omniglot

SIZES = {"train": 7, "test": 4}
DEVANAGARI = {"images_background": 3, "images_evaluation": 2}


@dataclass
class Fabricated:
    """A set.

    Attributes:
        files: Path below a data folder -> content, as the set is read.
        served: Name -> content, as it is fetched.
        images: Split -> images as they should come out, shape ``(N, C, H, W)``, in 0 to 255.
        labels: Split -> labels as they should come out, or None.
    """

    files: dict[str, bytes]
    served: dict[str, bytes]
    images: dict[str, NDArray[Any]]
    labels: dict[str, Any] = field(default_factory=dict)

    def put(self, folder: Path) -> Path:
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def drawn(split: str, *shape: int) -> NDArray[np.uint8]:
    """Random images of a split, which hold 0 and 255."""
    images = np.random.default_rng(len(split)).integers(0, 256, (SIZES.get(split, 3), *shape), dtype=np.uint8)
    images.reshape(-1)[:2] = (0, 255)
    return images


def labels_of(split: str, classes: int) -> NDArray[np.int64]:
    return np.random.default_rng(classes).integers(0, classes, SIZES[split])


def idx(array: NDArray[Any]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mnist_like(kind: str, patch: pytest.MonkeyPatch, url: str) -> Fabricated:
    images, labels = {s: drawn(s, 1, 28, 28) for s in SIZES}, {s: labels_of(s, 10) for s in SIZES}
    contents = {}
    for split, half in (("train", "train"), ("test", "t10k")):
        contents[f"{half}-images-idx3-ubyte"] = idx(images[split][:, 0])
        contents[f"{half}-labels-idx1-ubyte"] = idx(labels[split])
    served = {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    patch.setattr(getattr(datasets, kind), "mirrors", [f"{url}/"])
    patch.setattr(getattr(datasets, kind), "resources", [(name, md5(content)) for name, content in served.items()])
    return Fabricated({f"{kind}/raw/{name}": content for name, content in contents.items()}, served, images, labels)


def emnist(patch: pytest.MonkeyPatch, url: str) -> Fabricated:
    images, labels = {s: drawn(s, 1, 28, 28) for s in SIZES}, {s: labels_of(s, 26) for s in SIZES}
    contents = {}
    for split in SIZES:
        contents[f"emnist-letters-{split}-images-idx3-ubyte"] = idx(images[split][:, 0].swapaxes(1, 2))
        contents[f"emnist-letters-{split}-labels-idx1-ubyte"] = idx(labels[split] + 1)
    others = {"gzip/emnist-digits-train-images-idx3-ubyte.gz": gzip.compress(b"not asked for")}
    archive = zipped({f"gzip/{name}.gz": gzip.compress(content) for name, content in contents.items()} | others)
    patch.setattr(datasets.EMNIST, "url", f"{url}/gzip.zip")
    patch.setattr(datasets.EMNIST, "md5", md5(archive))
    files = {f"EMNIST/raw/{name}": content for name, content in contents.items()}
    return Fabricated(files, {"gzip.zip": archive}, images, labels)


def svhn(patch: pytest.MonkeyPatch, url: str) -> Fabricated:
    images, labels = {s: drawn(s, 3, 32, 32) for s in SIZES}, {s: labels_of(s, 10) for s in SIZES}
    labels["train"][0] = 0
    files = {}
    for split in SIZES:
        buffer = io.BytesIO()
        ten_for_zero = np.where(labels[split] == 0, 10, labels[split]).astype(np.uint8)[:, None]
        savemat(buffer, {"X": images[split].transpose(2, 3, 1, 0), "y": ten_for_zero})
        files[f"{split}_32x32.mat"] = buffer.getvalue()
    known = {s: [f"{url}/{s}_32x32.mat", f"{s}_32x32.mat", md5(files[f"{s}_32x32.mat"])] for s in SIZES}
    patch.setattr(datasets.SVHN, "split_list", known)
    return Fabricated(files, files, images, labels)


def cifar10(patch: pytest.MonkeyPatch, url: str) -> Fabricated:
    names = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
    images, labels, contents = {}, {}, {"batches.meta": pickle.dumps({"label_names": ["a", "b"]}, protocol=2)}
    for split, batches in names.items():
        images[split] = np.random.default_rng(0).integers(0, 256, (2 * len(batches), 3, 32, 32), dtype=np.uint8)
        images[split].reshape(-1)[:2] = (0, 255)
        labels[split] = np.arange(2 * len(batches)) % 10
        for k, name in enumerate(batches):
            rows = slice(2 * k, 2 * k + 2)
            batch = {"data": images[split][rows].reshape(2, -1), "labels": labels[split][rows].tolist()}
            contents[name] = pickle.dumps(batch, protocol=2)
    for split, batches in names.items():
        patch.setattr(datasets.CIFAR10, f"{split}_list", [[name, md5(contents[name])] for name in batches])
    patch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": md5(contents["batches.meta"])})
    files = {f"cifar-10-batches-py/{name}": content for name, content in contents.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    patch.setattr(datasets.CIFAR10, "url", f"{url}/cifar-10-python.tar.gz")
    patch.setattr(datasets.CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    return Fabricated(files, {"cifar-10-python.tar.gz": buffer.getvalue()}, images, labels)


def omniglot_like(patch: pytest.MonkeyPatch, url: str) -> Fabricated:
    """White paper with a black square of 20 x 20, for each drawing elsewhere; 2 drawings of each character."""
    patch.setattr(omniglot, "HALVES", DEVANAGARI)
    patch.setattr(omniglot, "DRAWINGS", 2)
    archives, images, labels, first = {}, {}, {}, 0
    for (half, characters), split in zip(DEVANAGARI.items(), SIZES, strict=True):
        pictures = np.zeros((2 * characters, 1, 105, 105), np.uint8)
        contents = {f"{half}/": b"", f"{half}/Script/": b"", f"__MACOSX/{half}/Script/._0.png": b"?"}
        for k in range(2 * characters):
            pictures[k, 0, 10 * k : 10 * k + 20, 5:25] = 255
            png = encoded(Image.fromarray(255 - pictures[k, 0]).convert("1"), "PNG")
            contents[f"{half}/Script/character{k // 2 + 1:02d}/{k:04d}.png"] = png
        # The order of a folder's files differs from machine to machine.
        archives[half] = zipped(dict(reversed(contents.items())))
        images[split], labels[split] = pictures, first + np.arange(2 * characters) // 2
        first += characters
    patch.setattr(datasets.Omniglot, "download_url_prefix", url)
    patch.setattr(datasets.Omniglot, "zips_md5", {half: md5(content) for half, content in archives.items()})
    files = {f"omniglot-py/{half}.zip": content for half, content in archives.items()}
    return Fabricated(files, {f"{half}.zip": content for half, content in archives.items()}, images, labels)


def celeba(patch: pytest.MonkeyPatch, url: str) -> Fabricated:
    """Red photographs with a green centre of 148 x 148, darker from one to the next."""
    names = [f"{k + 1:06d}.jpg" for k in range(9)]
    partition = ["0", "1", "2", "0", "0", "1", "2", "0", "2"]
    photographs, images = {}, {split: [] for split in ("train", "validation", "test")}
    for k, name in enumerate(names):
        picture = np.zeros((218, 178, 3), np.uint8)
        picture[..., 0] = 255
        picture[35:183, 15:163] = (0, 250 - 20 * k, 0)
        photographs[name] = encoded(Image.fromarray(picture), "JPEG", quality=95, subsampling=0)
        images[list(images)[int(partition[k])]].append(picture[35:183, 15:163].transpose(2, 0, 1))
    lines = "".join(f"{name} {number}\n" for name, number in zip(names, partition, strict=True)).encode()
    archive = zipped({f"img_align_celeba/{name}": content for name, content in photographs.items()})
    served = {"img_align_celeba.zip": archive, "list_eval_partition.txt": lines}
    known = [(name, md5(content), name) for name, content in served.items()]
    patch.setattr(datasets.CelebA, "file_list", [*known, ("far", "away", "list_attr_celeba.txt")])
    files = {f"celeba/img_align_celeba/{name}": content for name, content in photographs.items()}
    files["celeba/list_eval_partition.txt"] = lines
    return Fabricated(files, served, {split: np.stack(some) for split, some in images.items()})


def fabricate(name: str, patch: pytest.MonkeyPatch, url: str = "http://127.0.0.1:9") -> Fabricated:
    """A set by name; torchvision is told the checksums, and that the server is at ``url``."""
    kinds = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
    if name in kinds:
        return mnist_like(kinds[name], patch, url)
    others = {"emnist-letters": emnist, "svhn": svhn, "cifar10": cifar10, "omniglot": omniglot_like, "celeba": celeba}
    return others[name](patch, url)
