"""What ``fit`` costs besides its steps: the share of an epoch spent neither in a step nor in fetching its batch.

Bar, log line, running totals, schedules, the look at the last state, the row of the epoch. Median, least and greatest over
epochs after the first; the validation at an epoch's end is left out, since it is asked for.

    python benchmarks/fit_loop.py [--epochs 8] [--images 20480]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.data import Data, Split
from pyro_vae.inference.training.training import Training


class Clock:
    """Adds up the time that calls and iterations take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return call

    def each(self, iterate: Any) -> Any:
        def items(*args: Any) -> Iterator[Any]:
            iterator = iter(iterate(*args))
            while (item := self.timed(next)(iterator, None)) is not None:
                yield item

        return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=20_480)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    x = (torch.rand(options.images, 784) < 0.13).float()
    vae = pv.VAE((784,), 50, (400,), "relu")
    clock, shares, began = Clock(), [], [0.0, 0.0]

    def row(training: Training) -> None:
        now = time.perf_counter()
        if not shares and len(training.history) == 1:  # the first epoch captures; from now on steps are timed
            training.svi.step_terms = clock.timed(training.svi.step_terms)  # type: ignore[method-assign]
            training.batches.rest = clock.each(training.batches.rest)  # type: ignore[method-assign]
        else:
            shares.append(1 - (clock.seconds - began[1]) / (now - began[0]))
        began[:] = [time.perf_counter(), clock.seconds]

    pv.fit(
        vae, Data("x", Split(x)), epochs=options.epochs, batch_size=options.batch_size, compile=True, callbacks=[row]
    )
    words = [f"{100 * share:.2f} %" for share in (statistics.median(shares), min(shares), max(shares))]
    print(f"outside of steps and batches: {words[0]} ({words[1]} to {words[2]}), {len(shares)} epochs")


if __name__ == "__main__":
    main()
