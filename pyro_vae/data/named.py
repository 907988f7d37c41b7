"""Data sets by name: digits from scikit-learn, the others through torchvision."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyro_vae.data.parts import Part, Parts, Request
from pyro_vae.data.stored import MemoryReader, Scaled, Stored


def _digits(request: Request) -> Parts:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    values = pixels.astype("uint8").reshape(-1, 1, 8, 8)
    whole = Part(Stored(MemoryReader(values, Scaled(16))), torch.from_numpy(labels).long())
    # The set has no test split of its own: one in ten, the same ones whatever the seed, so that runs can be compared.
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1797))
    return Parts(whole.take(order[180:]), test=whole.take(order[:180]))


def _mnist(request: Request) -> Parts:
    from torchvision.datasets import MNIST

    folder, splits = request.folders[0], []
    for train in (True, False):
        try:
            found = MNIST(str(folder), train=train, download=request.download)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:  # missing, empty or damaged
            raise ValueError(
                f"mnist: expected its files in {folder / 'MNIST' / 'raw'}, got none that can be read ({error}); give the "
                "folder that holds MNIST by --data-dir, allow --download, or take --dataset digits, which needs no files."
            ) from None
        values = found.data[:, None].numpy()
        splits.append(Part(Stored(MemoryReader(values, Scaled(255))), found.targets.long()))
    return Parts(splits[0], test=splits[1])


#: Data sets by name: what is asked -> what there is.
NAMED: dict[str, Callable[[Request], Parts]] = {"digits": _digits, "mnist": _mnist}
