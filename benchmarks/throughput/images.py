"""Binary images of 28 x 28 in memory, and the ways in which rivals are handed batches of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def load(data_dir: Path | None, count: int = 60_000) -> tuple[Tensor, str]:
    """Images, shape ``(N, 784)``, 0 or 1, and what they are.

    Args:
        data_dir: Where MNIST lies; None: drawn from a model of smooth shapes.
        count: How many, at most.
    """
    generator = torch.Generator().manual_seed(0)
    if data_dir is not None:
        import pyro_vae as pv

        grey = pv.data.load("mnist", data_dir=data_dir, download=False, val_size=0).train.x[:count]
        return torch.bernoulli(grey.reshape(-1, 784), generator=generator), "MNIST, binarized once"
    return synthetic(count, generator), "synthetic"


def synthetic(count: int, generator: torch.Generator) -> Tensor:
    """Blobs on a dark ground: the logit is a random mixture of eight low-frequency waves."""
    line = torch.linspace(0, torch.pi, 28)
    waves = torch.stack([(i * line).cos()[:, None] * (j * line).cos() for i in range(3) for j in range(3)][1:])
    logits = 4 * torch.randn(count, 8, generator=generator) @ waves.flatten(1) - 4
    return torch.bernoulli(torch.sigmoid(logits), generator=generator)


def batches(x: Tensor, batch_size: int, data_shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Endless batches from memory, in a new order each epoch, whole ones alone."""
    x = x.view(-1, *data_shape)
    while True:
        for index in torch.randperm(len(x), device=x.device).split(batch_size)[: len(x) // batch_size]:
            yield x.index_select(0, index)


class _Pictures(Dataset[Any]):
    """PIL images through torchvision's ``ToTensor``, made at each access, as its MNIST class does."""

    def __init__(self, x: Tensor) -> None:
        from torchvision.transforms import ToTensor

        self.pixels = (x.view(-1, 28, 28) * 255).to(torch.uint8)
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index].numpy())), 0


class _Rows(Dataset[Any]):
    """Rows of a tensor made beforehand."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], 0


def loaded(x: Tensor, batch_size: int, data_shape: tuple[int, ...], transformed: bool) -> Iterator[Tensor]:
    """Endless batches through a ``DataLoader`` of the main process; ``transformed``: from PIL images, else from rows."""
    data: Dataset[Any] = _Pictures(x.cpu()) if transformed else _Rows(x.cpu())
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)
    for batch, _ in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield batch.view(-1, *data_shape).to(x.device)
