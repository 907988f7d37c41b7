"""Importance draws a second: this package against pythae's ``get_nll`` and the matrix products of the decoder alone.

    python -m benchmarks.draws [--rounds 7]

Every rival scores the same draws x data through the same 784-400-50-400-784 network, once a round, in an order drawn anew;
ratios are taken within a round, and are given as the median with the least and the greatest. Threads are those of torch: set
OMP_NUM_THREADS. pythae comes with ``pip install pyro_vae[bench]``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import pyro_vae as pv
from benchmarks.throughput import images, machine
from benchmarks.throughput.networks import OneLayer, mlp
from benchmarks.throughput.pythae_trainer import model_of
from pyro_vae.inference.svi.precision import PRECISIONS
from pyro_vae.inference.weights.compiled import CapturedDraws

NUM_DATA = 100


def ours(net: OneLayer, x: torch.Tensor, draws: int, compile: bool, precision: str) -> Callable[[], float]:
    vae = pv.VAE(net.data_shape, net.latent_dim, encoder=net.encoder, decoder=net.decoder).eval()
    captured: Any = CapturedDraws() if compile else False

    def run() -> float:
        with PRECISIONS[precision]():
            found = pv.evidence.importance_sampling(
                vae.model, vae.guide, x, num_samples=draws, seed=0, compile=captured
            )
        return float(found.log_px.mean())

    return run


def pythae(net: OneLayer, x: torch.Tensor, draws: int) -> Callable[[], float]:
    model = model_of(net).eval()

    def run() -> float:
        with torch.no_grad():
            return float(model.get_nll(x, n_samples=draws, batch_size=100))

    return run


def floor(net: OneLayer, x: torch.Tensor, draws: int, rows: int = 1000) -> Callable[[], float]:
    """The decoder's two products, in chunks of as many rows."""
    weights = [layer.weight.detach().T.contiguous() for layer in net.decoder if isinstance(layer, torch.nn.Linear)]
    z = torch.randn(rows, net.latent_dim)
    hidden = torch.randn(rows, len(weights[1]))

    def run() -> float:
        for _ in range(len(x) * draws // rows):
            torch.mm(z, weights[0])
            torch.mm(hidden, weights[1])
        return 0.0

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draws", type=int, default=1000, help="for each of 100 images, in a round")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    net = mlp()
    x = images.synthetic(NUM_DATA, torch.Generator().manual_seed(0))
    rivals = {
        "pythae get_nll": pythae(net, x, chosen.draws),
        "floor: the decoder's matrix products": floor(net, x, chosen.draws),
        "ours, eager": ours(net, x, chosen.draws, False, "float32"),
        "ours, compiled": ours(net, x, chosen.draws, True, "float32"),
        "ours, eager, bf16": ours(net, x, chosen.draws, False, "bf16"),
        "ours, compiled, bf16": ours(net, x, chosen.draws, True, "bf16"),
    }
    values = {name: run() for name, run in rivals.items()}  # the first call compiles
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    order = random.Random(0)
    for _ in range(chosen.rounds):
        for name in order.sample(list(rivals), len(rivals)):
            started = time.perf_counter()
            rivals[name]()
            seconds[name].append(time.perf_counter() - started)
    print(f"{machine.describe(torch.device('cpu'))}\n")
    print("| | draws a second | over pythae | over the floor | mean log p(x), nats |\n| --- | --- | --- | --- | --- |")
    for name, taken in seconds.items():
        rate = NUM_DATA * chosen.draws / statistics.median(taken)
        over = [
            _interval([a / b for a, b in zip(seconds[base], taken, strict=True)])
            for base in ("pythae get_nll", "floor: the decoder's matrix products")
        ]
        print(f"| {name} | {rate:,.0f} | {over[0]} | {over[1]} | {values[name]:.3f} |")


def _interval(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
