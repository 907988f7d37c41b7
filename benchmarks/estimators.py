"""Every estimator of log p(x) on the same images: of a trained run's test set, and simulated from it.

    python -m benchmarks.estimators RUN [--num-data 100] [--num-steps 1000]

Prints two tables: mean log p(x) with the standard error over data, the Monte Carlo error where it is known, how many data have
too large a Pareto k, and seconds. On simulated images bidirectional Monte Carlo adds an upper bound, which real ones cannot
have.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import evidence
from pyro_vae.evidence import CapturedPath, Estimate
from pyro_vae.system import compiler
from pyro_vae.system.randomness import own_randomness


def estimators(vae: Any, x: Tensor, num_steps: int, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    pair = vae.model, vae.guide
    for count in (100, 1000, 10_000):
        yield (
            f"importance, K = {count:,}",
            lambda count=count: evidence.importance_sampling(*pair, x, num_samples=count, seed=seed),
        )
    yield (
        "refined, then K = 1,000",
        lambda: evidence.refined_importance_sampling(*pair, x, num_samples=1000, seed=seed),
    )
    options: dict[str, Any] = {"compile": CapturedPath() if compiler.obstacle() is None else False}
    for start in ("prior", "guide"):
        yield (
            f"annealed from the {start}, 16 chains of {num_steps:,} steps",
            lambda start=start: evidence.annealed_importance_sampling(
                *pair, x, num_steps=num_steps, start=start, seed=seed, **options
            ),
        )


def row(name: str, found: Estimate, log_px: Tensor, seconds: float | None) -> str:
    bad = int((~found.reliable).sum())
    error = float(log_px.std() / math.sqrt(len(log_px)))
    known = "unknown" if bad else f"{float(found.std_error.square().sum().sqrt() / len(log_px)):.4f}"
    took = "" if seconds is None else f"{seconds:.1f}"
    return f"| {name} | {float(log_px.mean()):.3f} | {error:.2f} | {known} | {bad} | {took} |"


def table(vae: Any, x: Tensor, num_steps: int, seed: int) -> None:
    print(
        "| | log p(x) | error over data | Monte Carlo error | k too large | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, run in estimators(vae, x, num_steps, seed):
        started = time.perf_counter()
        with own_randomness(seed):
            found = run()
        seconds = time.perf_counter() - started
        if name.endswith(" 100"):
            print(row("ELBO", found, found.elbo, None))
        print(row(name, found, found.log_px, seconds), flush=True)
        if name.startswith("importance"):
            print(row(f"smoothed, {name.split(', ')[1]}", found, found.smoothed, None), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--num-data", type=int, default=100)
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    run = pv.load(chosen.run)
    data, seed = run.data(), chosen.seed
    assert data.test is not None
    x = data.test.x[: chosen.num_data]
    print(f"{len(x)} test images, {torch.get_num_threads()} threads\n")
    table(run.vae, x, chosen.num_steps, seed)
    started = time.perf_counter()
    compile = CapturedPath() if compiler.obstacle() is None else False
    bracket = evidence.bidirectional(
        run.vae.model, run.vae.guide, x, num_steps=chosen.num_steps, start="guide", seed=seed, compile=compile
    )
    seconds = time.perf_counter() - started
    print(f"\n{len(x)} images simulated from the model\n")
    table(run.vae, bracket.args[0], chosen.num_steps, seed)
    found = bracket.summary()
    print(row("bidirectional, lower", bracket.lower, bracket.lower.log_px, None))
    print(row("bidirectional, upper", bracket.upper.inverse, bracket.upper.log_px, seconds))
    print(
        f"\nbracket: {found.gap:.3f} nats (standard error over data {found.gap_std_error:.3f}); per image from "
        f"{float(bracket.gap.min()):.2f} to {float(bracket.gap.max()):.2f}; moves accepted {found.acceptance:.0%} forward, "
        f"{found.reverse_acceptance:.0%} in reverse"
    )


if __name__ == "__main__":
    main()
