"""scikit-learn's digits: 1,797 images of 8 x 8 pixels."""

from __future__ import annotations

import torch

from pyro_vae.data.source import Part, Parts, Request
from pyro_vae.data.stored import MemoryReader, Scaled, Stored


def digits(_request: Request) -> Parts:
    """Read scikit-learn's digits."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    values = pixels.astype("uint8").reshape(-1, 1, 8, 8)
    whole = Part(Stored(MemoryReader(values, Scaled(16))), torch.from_numpy(labels).long())
    # scikit-learn has no test split. A tenth is set aside, the same for every seed, so that runs can be compared.
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1797))
    return Parts(whole.take(order[180:]), test=whole.take(order[:180]))
