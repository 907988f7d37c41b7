"""The figures of a run on its test data: what ``summary.json`` holds and the terminal shows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pyro_vae
from pyro_vae import compiling, evidence, parallel
from pyro_vae.config import Config
from pyro_vae.data import Data, Stored
from pyro_vae.data.stored import rows_of
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.evidence import Estimate, Summary
from pyro_vae.evidence.importance import CHUNK_ROWS
from pyro_vae.inference.captured_draws import CapturedDraws
from pyro_vae.inference.training import History
from pyro_vae.models import VAE
from pyro_vae.randomness import own_randomness

#: Version of what ``summary.json`` holds.
SCHEMA = 1

#: Data of one call of an estimator: with 10 draws each, a chunk of 1,000 rows, which stays in the processor's cache.
EVALUATION_BATCH = 100


PACKAGES = ("torch", "torchvision", "pyro-ppl", "numpy", "arviz")


def estimate(
    vae: VAE, x: Tensor | Stored, num_samples: int, seed: int, progress: bool = False, compile: bool | None = None
) -> Estimate:
    """Importance-sampled log p(x) of test images, in batches, from generators of its own; all processes of a job share them.

    Args:
        vae: The model.
        x: Images, shape ``(N, *data_shape)``.
        num_samples: K.
        seed: Seed of the draws.
        progress: Whether to show a bar on a terminal.
        compile: Whether to compile the draws; None: if they are many enough to repay it.
    """
    rows = rows_of(x.shape)
    size = min(EVALUATION_BATCH, rows)
    chunk = min(CHUNK_ROWS, rows)
    shown: Iterable[Tensor | None] = tqdm(
        parallel.dealt(x, size, seed),
        total=math.ceil(len(x) / size / parallel.world().size),
        disable=None if progress else True,
        unit="batch",
        leave=False,
        desc="log p(x)",
    )
    vae.eval()
    flops = 2.0 * sum(p.numel() for p in vae.parameters()) * len(x) * num_samples
    wanted = compiling.repays(flops, next(vae.parameters()).device) if compile is None else compile
    captured = CapturedDraws() if wanted else False
    options: dict[str, Any] = {"num_samples": num_samples, "chunk_rows": chunk, "compile": captured}
    with own_randomness(seed), parallel.together():
        ours = (part for part in shown if part is not None)
        parts = [evidence.importance_sampling(vae.model, vae.guide, part, **options) for part in ours]
    return Estimate.cat(parallel.collected(parts))


@torch.no_grad()
def active_units(vae: VAE, x: Tensor | Stored) -> int | None:
    """How many latent units vary with the data, see :func:`evidence.active_units`; None for one datum alone."""
    if len(x) < 2:
        return None
    means = torch.cat([vae.encode(part).mean.cpu() for part in x.split(min(1000, rows_of(x.shape)))])
    return int(evidence.active_units(means).sum())


def evaluate(
    config: Config, vae: VAE, data: Data, history: History, train_seconds: float, progress: bool
) -> tuple[dict[str, Any], Estimate]:
    """The summary of a run: what ``summary.json`` holds, and the estimate of each test datum behind it.

    Args:
        config: What the run is.
        vae: Its model, trained.
        data: Its data, on the model's device.
        history: Its history.
        train_seconds: How long training took, in all its sessions.
        progress: Whether to show a bar on a terminal.

    Returns:
        Nested plain containers, bounds in nats per datum, higher is better; and the estimate, in the order of the data.

    Raises:
        ValueError: If there are no test data.
    """
    if data.test is None:
        raise ValueError("test data: expected some to evaluate on, got none.")
    started = time.perf_counter()
    found = estimate(
        vae, data.test.x, config.evaluate.num_samples, config.train.seed, progress, config.evaluate.compile_draws
    )
    figures = {
        "test": {**_test_figures(found.summary()), "active_units": active_units(vae, data.test.x)},
        "validation": {"elbo": _validation_figure(history)},
        "units": "nats per datum",
        "density": LIKELIHOODS[config.model.likelihood].support != "binary",
        "schema": SCHEMA,
        "seconds": {"train": train_seconds, "evaluate": time.perf_counter() - started},
        "best_epoch": history.best_epoch,
        "epochs": len(history),
        "stopped_by": history.stopped_by,
        "images_per_second": _median(history["images_per_second"]),
        "compiled": history.compiled,
        "device": str(data.test.x.device),
        "threads": torch.get_num_threads(),
        "processes": parallel.world().size,
        "seed": config.train.seed,
        "versions": {"pyro_vae": pyro_vae.__version__} | {p: version(p) for p in PACKAGES},
    }
    return figures, found


def _validation_figure(history: History) -> dict[str, float | None] | None:
    best = history.rows[history.best_epoch - 1]
    if "validation_elbo" not in best:
        return None
    error = best["validation_elbo_std_error"]
    return {"value": best["validation_elbo"], "std_error": error if math.isfinite(error) else None}


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def _test_figures(found: Summary) -> dict[str, Any]:
    return {
        "elbo": {"value": found.elbo, "std_error": found.elbo_std_error, "mc_error": found.elbo_mc_error},
        "log_px": {
            "value": found.log_px,
            "std_error": found.std_error,
            "mc_error": found.mc_error,
            "mc_error_reliable": found.mc_error_reliable,
            "bias": found.bias,
            "lower_bound_95": found.lower_bound,
            "num_samples": found.num_samples,
            "pareto_k_bad": found.pareto_k_bad,
            "pareto_k_threshold": found.pareto_k_threshold,
        },
        "gap": found.gap,
        "rate": found.rate,
        "distortion": found.distortion,
        "num_data": found.num_data,
    }


def table(summary: dict[str, Any]) -> str:
    """The test figures of a summary as a short table for the terminal."""
    test, px = summary["test"], summary["test"]["log_px"]
    kind = "log density" if summary["density"] else "log probability"
    rows = [
        f"Test set: {test['num_data']:,} images, {px['num_samples']:,} importance samples each; {kind}, nats per image, "
        "higher is better",
        "                 value   error (data)   error (Monte Carlo)",
        _row("ELBO", test["elbo"]),
        _row("log p(x)", px),
        f"gap {test['gap']:.3f} = log p(x) - ELBO; rate {test['rate']:.3f}; distortion {test['distortion']:.3f}; "
        f"{'unknown' if test['active_units'] is None else test['active_units']} active units",
        f"with probability 95 %, mean log p(x) of these images is above {px['lower_bound_95']:.3f}",
    ]
    return "\n".join([*rows, _verdict(test["num_data"], px)])


def _row(name: str, figure: dict[str, Any]) -> str:
    return f"{name:<12}{figure['value']:10.3f} {_error(figure['std_error']):>14} {_error(figure['mc_error']):>21}"


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _verdict(num_data: int, px: dict[str, Any]) -> str:
    bad, threshold = px["pareto_k_bad"], px["pareto_k_threshold"]
    if not bad:
        return f"every Pareto k is at most {threshold:.2f}: the Monte Carlo error can be trusted (bias about {px['bias']:.4f})"
    rest = px["mc_error_reliable"]
    others = "" if rest is None else f"; over the other {num_data - bad:,} it is {rest:.4f}"
    return (
        f"for {bad:,} of {num_data:,} images Pareto k is above {threshold:.2f}: their log p(x) is likely too low and the "
        f"Monte Carlo error is not known{others}"
    )
