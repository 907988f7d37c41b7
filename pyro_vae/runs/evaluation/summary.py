"""The figures of a run on its test data: what ``summary.json`` holds and the terminal shows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from pyro_vae import evidence, parallel
from pyro_vae.data import Data, Inputs, Stored
from pyro_vae.evidence import BracketSummary, Estimate, Summary
from pyro_vae.inference.training.history import History
from pyro_vae.models.protocol import call_with_inputs, evaluation_inputs, evidence_name, has_bound, has_density
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from pyro_vae.runs.evaluation.scores import score_rows, scores

#: Version of what ``summary.json`` holds.
SCHEMA = 1

PACKAGES = ("torch", "torchvision", "pyro-ppl", "numpy", "arviz")


@torch.no_grad()
def latent_figures(vae: Any, data: Inputs | Tensor | Stored | tuple[Tensor, ...]) -> dict[str, Any]:
    """What the latent units say of the data.

    Returns:
        ``active_units``: how many vary with the data, see :func:`evidence.active_units`; None for one datum alone, and of a
        model that does not encode.
        ``kl_per_unit``: mean KL(q(z_j|x) || p(z_j)) of each, nats; None where the KL is no sum over units, or not finite.
    """
    columns = Inputs.of(data)
    if not hasattr(vae, "encode"):
        return {"active_units": None, "kl_per_unit": None}
    prior = vae.prior() if hasattr(vae, "prior") else None
    means, kls = [], []
    for part in columns.split(min(1000, columns.chunk)):
        q = call_with_inputs(vae.encode, part)
        means.append(q.mean.cpu())
        kls.append(None if prior is None else evidence.kl_per_unit(q, prior))
    active = int(evidence.active_units(torch.cat(means)).sum()) if len(columns) > 1 else None
    known = [kl for kl in kls if kl is not None]
    kl = torch.cat(known).mean(0) if known else None
    return {"active_units": active, "kl_per_unit": None if kl is None or not bool(kl.isfinite().all()) else kl.tolist()}


def evaluate(
    config: Config,
    vae: Any,
    data: Data,
    history: History,
    train_seconds: float,
    progress: bool,
    how: Estimation | None = None,
) -> tuple[dict[str, Any], Estimate | None]:
    """The summary of a run: what ``summary.json`` holds, and the estimate of each test datum behind it.

    Args:
        config: What the run is.
        vae: Its model, trained.
        data: Its data, on the model's device.
        history: Its history.
        train_seconds: How long training took, in all its sessions.
        progress: Whether to show a bar on a terminal.
        how: How log p(x) is estimated, an estimator that draws from the guide; None: as ``config`` says.

    Returns:
        Nested plain containers, bounds in nats per datum, higher is better; and the estimate, in the order of the data, or None
        of a model that has no bound.

    Raises:
        ValueError: If there are no test data.
    """
    if data.test is None:
        raise ValueError("test data: expected some to evaluate on, got none.")
    started = time.perf_counter()
    how = how or Estimation(num_samples=config.evaluate.num_samples, compile=config.evaluate.compile_draws)
    columns = evaluation_inputs(vae, data.test)
    found = estimate(vae, columns, how, config.train.seed, progress) if has_bound(vae) else None
    density = has_density(vae, columns)
    dims = None if density else math.prod(data.data_shape)
    known = {"num_data": len(columns)} if found is None else figures_of(found.summary(), dims)
    figures = {
        "test": {**known, **latent_figures(vae, columns), **scores(vae, data.test, config.train.seed)},
        "validation": {"elbo": _validation_figure(history)},
        "units": "nats per datum" if found is not None else None,
        "density": density if found is not None else None,
        "evidence_of": evidence_name(vae, columns) if found is not None else None,
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
        "versions": {"pyro_vae": version("pyro-vae")} | {p: version(p) for p in PACKAGES},
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


def figures_of(found: Summary, dims: int | None = None, levels: int | None = None) -> dict[str, Any]:
    """The means of an estimate as plain containers.

    Args:
        found: The means.
        dims: Pixels times channels, for the bits of each; None: a density, which has none.
        levels: Of dequantized pixels, how many levels they had.
    """
    figures = {
        "elbo": {"value": found.elbo, "std_error": found.elbo_std_error, "mc_error": found.elbo_mc_error},
        "log_px": {
            "value": found.log_px,
            "std_error": found.std_error,
            "mc_error": found.mc_error,
            "mc_error_reliable": found.mc_error_reliable,
            "jackknife_error": found.jackknife_error,
            "bias": found.bias,
            "lower_bound_95": found.lower_bound,
            "smoothed": found.smoothed,
            "num_samples": found.num_samples,
            "draws": found.draws,
            "pilot_draws": found.pilot_draws,
            "pareto_k_bad": found.pareto_k_bad,
            "pareto_k_threshold": found.pareto_k_threshold,
            "judged_by": list(found.criterion),
        },
        "gap": found.gap,
        "rate": found.rate,
        "distortion": found.distortion,
        "num_data": found.num_data,
    }
    if dims is not None:
        log_px = torch.tensor(found.log_px, dtype=torch.float64)
        bits = evidence.bits_per_dim(log_px, dims, density=levels is not None, levels=levels)
        figures["bits_per_dim"] = float(bits)
    return figures


def bracket_table(found: BracketSummary, spent: str | None) -> str:
    """Means of a bracket as a short table for the terminal."""
    rows = [
        f"Simulated from the model: {found.num_data:,} images, {spent} each way; nats per image",
        "                 value   error (Monte Carlo)",
        f"{'lower bound':<12}{found.lower:10.3f} {_error(found.lower_mc_error):>21}",
        f"{'upper bound':<12}{found.upper:10.3f} {_error(found.upper_mc_error):>21}",
        f"gap {found.gap:.3f} (standard error over data {_error(found.gap_std_error)}); moves accepted: "
        f"{found.acceptance:.0%} forward, {found.reverse_acceptance:.0%} in reverse",
        f"with probability 95 % each, mean log p(x) of these images is above {found.lower_bound:.3f}, and below "
        f"{found.upper_bound:.3f}",
    ]
    return "\n".join(rows)


def table(summary: dict[str, Any]) -> str:
    """The test figures of a summary as a short table for the terminal."""
    test = summary["test"]
    if "log_px" in test:
        return figures_table(test, "Test set", summary["density"], name=summary["evidence_of"])
    return "\n".join([f"Test set: {test['num_data']:,} images; a model without a bound on log p(x)", *score_rows(test)])


def figures_table(
    test: dict[str, Any], what: str, density: bool, spent: str | None = None, name: str = "log p(x)"
) -> str:
    """Means of an estimate, see :func:`figures_of`, as a short table for the terminal.

    Args:
        test: The figures.
        what: Of which data.
        density: Whether log p(x) is a log density.
        spent: What was spent on each datum; None: importance samples.
        name: What the evidence is called, see :func:`pyro_vae.models.protocol.evidence_name`.
    """
    px = test["log_px"]
    kind = "log density" if density else "log probability"
    spent = spent or _spent(px, test["num_data"])
    rows = [
        f"{what}: {test['num_data']:,} images, {spent} each; {kind}, nats per image, higher is better",
        "                 value   error (data)   error (Monte Carlo)",
        _row("ELBO", test["elbo"]),
        _row(name, px),
        "; ".join(_others(test, name)),
        *([_smoothed(px, name)] if px["smoothed"] != px["value"] else []),
        f"with probability 95 %, mean {name} of these images is above {px['lower_bound_95']:.3f}",
    ]
    return "\n".join([*rows, _verdict(test["num_data"], px, name), *score_rows(test)])


def _spent(px: dict[str, Any], num_data: int) -> str:
    mean = px["draws"] / num_data
    if mean == px["num_samples"]:
        return f"{px['num_samples']:,} importance samples"
    return f"{mean:,.0f} importance samples on average, at most {px['num_samples']:,},"


def _others(test: dict[str, Any], name: str) -> Iterator[str]:
    yield f"gap {_plain(test['gap'], 3)} = {name} - ELBO"
    yield f"rate {_plain(test['rate'], 3)}"
    yield f"distortion {test['distortion']:.3f}"
    if "active_units" in test:
        yield f"{'unknown' if test['active_units'] is None else test['active_units']} active units"
    if "bits_per_dim" in test:
        yield f"{test['bits_per_dim']:.4f} bits per pixel value"


def _smoothed(px: dict[str, Any], name: str) -> str:
    change = px["smoothed"] - px["value"]
    return f"by Pareto-smoothed weights {name} is {px['smoothed']:.3f} ({change:+.3f}); that is no bound"


def _plain(value: float, digits: int) -> str:
    """A number without the sign of a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _row(name: str, figure: dict[str, Any]) -> str:
    return f"{name:<12}{figure['value']:10.3f} {_error(figure['std_error']):>14} {_error(figure['mc_error']):>21}"


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _verdict(num_data: int, px: dict[str, Any], name: str) -> str:
    bad, (what, limit) = px["pareto_k_bad"], px["judged_by"]
    if not bad:
        bias = _plain(px["bias"], 4)
        return f"for every image {what} is at most {limit}: the Monte Carlo error can be trusted (bias about {bias})"
    rest = px["mc_error_reliable"]
    others = "" if rest is None else f"; over the other {num_data - bad:,} it is {rest:.4f}"
    return (
        f"for {bad:,} of {num_data:,} images {what} is above {limit}: their {name} is likely too low and the "
        f"Monte Carlo error is not known{others}"
    )
