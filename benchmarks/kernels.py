"""Two kernels of a Bernoulli VAE against their usual forms: drawing binary pixels, and the log mass with its gradient.

python benchmarks/kernels.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pyro_vae.data import binarize
from pyro_vae.distributions import Bernoulli

SHAPE = (100, 784)


def microseconds(call: Callable[[], object], repeats: int = 200) -> float:
    """Mean time of a call."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats * 1e6


def compare(name: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int = 9) -> None:
    """Print the ratio of the two, the median of interleaved rounds."""
    microseconds(usual), microseconds(ours)
    pairs = [(microseconds(usual), microseconds(ours)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{name:40s} {a:7.0f} us {b:7.0f} us   ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )


def main() -> None:
    """Print a row for each kernel: usual, ours, how many times as fast."""
    torch.manual_seed(0)
    grey = torch.rand(SHAPE)
    x = torch.bernoulli(grey)
    logits = torch.randn(SHAPE, requires_grad=True)
    likelihood = Bernoulli(SHAPE[1:])

    def usual_loss() -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")

    def our_loss() -> torch.Tensor:
        return -likelihood(logits).base_dist.log_prob(x).sum()

    print(f"batch of {SHAPE}, {torch.get_num_threads()} threads; usual, ours, usual / ours")
    compare("binary pixels: torch.bernoulli", lambda: torch.bernoulli(grey), lambda: binarize(grey, "dynamic"))
    compare("log mass: cross-entropy", lambda: usual_loss().detach(), lambda: our_loss().detach())
    compare("its gradient too", lambda: usual_loss().backward(), lambda: our_loss().backward())


if __name__ == "__main__":
    import pyro

    with pyro.validation_enabled(False):
        main()
