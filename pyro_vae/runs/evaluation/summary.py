"""The figures of a run on its test data, for ``summary.json``."""

from __future__ import annotations

import math
import time
from importlib.metadata import version

import torch
from torch import Tensor

from pyro_vae import evidence, parallel
from pyro_vae.data import Data, Inputs, Stored
from pyro_vae.evidence import Bracket, Estimate, Summary
from pyro_vae.inference.training.history import History
from pyro_vae.models.protocol import (
    PyroModel,
    call_with_inputs,
    encodes,
    evaluation_inputs,
    evidence_name,
    has_bits_per_dim,
    has_bound,
    has_density,
    method_of,
)
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import Json
from pyro_vae.runs.evaluation.estimators import Estimation, estimate
from pyro_vae.runs.evaluation.scores import scores
from pyro_vae.system.version import package_version

#: Version of the format of ``summary.json``.
SCHEMA = 1

PACKAGES = ("torch", "torchvision", "pyro-ppl", "numpy", "arviz")


def evaluate(
    config: Config,
    vae: PyroModel,
    data: Data,
    history: History,
    train_seconds: float,
    progress: bool,
    how: Estimation | None = None,
) -> tuple[Json, Estimate | None]:
    """Make the summary of a run, and its estimate of log p(x).

    Args:
        config: The configuration.
        vae: The trained model.
        data: The data, on the model's device.
        history: The history.
        train_seconds: Training time in all sessions, seconds.
        progress: Show a progress bar on a terminal.
        how: An estimator of log p(x) that draws from the guide; None: importance sampling with the options in ``config``.

    Returns:
        Two values. The first is the summary in nested plain containers, with bounds in nats per datum, higher is better. The
        second is the estimate, in the order of the data; None for a model without a bound.

    Raises:
        ValueError: If there are no test data.
    """
    if data.test is None:
        raise ValueError("test data: an evaluation needs test data, but the data set has none.")
    started = time.perf_counter()
    how = how or Estimation(num_samples=config.evaluate.num_samples, compile=config.evaluate.compile_draws)
    inputs = evaluation_inputs(vae, data.test)
    result = estimate(vae, inputs, how, config.train.seed, progress) if has_bound(vae) else None
    assert not isinstance(result, Bracket)  # the estimator draws from the guide
    density = has_density(vae, inputs)
    dims = math.prod(data.data_shape) if has_bits_per_dim(vae, inputs) else None
    test = {"num_data": len(inputs)} if result is None else estimate_figures(result.summary(), dims)
    figures = {
        "test": {**test, **latent_figures(vae, inputs), **scores(vae, data.test, config.train.seed)},
        "validation": {"elbo": _validation_elbo(history)},
        "units": "nats per datum" if result is not None else None,
        "density": density if result is not None else None,
        "evidence_of": evidence_name(vae, inputs) if result is not None else None,
        "schema": SCHEMA,
        "seconds": {"train": train_seconds, "evaluate": time.perf_counter() - started},
        **_training_figures(history),
        "device": str(data.test.x.device),
        "threads": torch.get_num_threads(),
        "processes": parallel.world().size,
        "seed": config.train.seed,
        "versions": {"pyro_vae": package_version()} | {p: version(p) for p in PACKAGES},
    }
    return figures, result


@torch.no_grad()
def latent_figures(vae: PyroModel, data: Inputs | Tensor | Stored | tuple[Tensor, ...]) -> dict[str, object]:
    """Summarize the latent units over the data.

    Args:
        vae: The model.
        data: Data, shape ``(N, *data_shape)``, or the inputs of the model.

    Returns:
        A dict with two keys. ``active_units``: the number of latent units that vary with the data, see
        :func:`evidence.active_units`; None for a single datum, and for a model without ``encode``. ``kl_per_unit``: mean
        KL(q(z_j|x) || p(z_j)) of each latent unit, nats; None if the KL is not a sum over units, or not finite.
    """
    inputs = Inputs.of(data)
    if not encodes(vae):
        return {"active_units": None, "kl_per_unit": None}
    prior = None if (make := method_of(vae, "prior")) is None else make()
    means, kls = [], []
    for part in inputs.split(min(1000, inputs.chunk)):
        q = call_with_inputs(vae.encode, part)
        means.append(q.mean.cpu())
        kls.append(None if prior is None else evidence.kl_per_unit(q, prior))
    active = int(evidence.active_units(torch.cat(means)).sum()) if len(inputs) > 1 else None
    known = [kl for kl in kls if kl is not None]
    kl = torch.cat(known).mean(0) if known else None
    return {"active_units": active, "kl_per_unit": None if kl is None or not bool(kl.isfinite().all()) else kl.tolist()}


def estimate_figures(means: Summary, dims: int | None = None, levels: int | None = None) -> Json:
    """Return the means of an estimate as plain containers.

    Args:
        means: The means of the estimate.
        dims: Number of pixels times channels, which gives bits per dimension; None: leave out bits per dimension, as for a
            density.
        levels: Number of levels of dequantized pixels; None: the pixels were not dequantized.
    """
    figures = {
        "elbo": {"value": means.elbo, "std_error": means.elbo_std_error, "mc_error": means.elbo_mc_error},
        "log_px": {
            "value": means.log_px,
            "std_error": means.std_error,
            "mc_error": means.mc_error,
            "mc_error_reliable": means.mc_error_reliable,
            "jackknife_error": means.jackknife_error,
            "bias": means.bias,
            "lower_bound_95": means.lower_bound,
            "smoothed": means.smoothed,
            "num_samples": means.num_samples,
            "draws": means.draws,
            "pilot_draws": means.pilot_draws,
            "pareto_k_bad": means.pareto_k_bad,
            "pareto_k_threshold": means.pareto_k_threshold,
            "judged_by": list(means.criterion),
        },
        "gap": means.gap,
        "rate": means.rate,
        "distortion": means.distortion,
        "num_data": means.num_data,
    }
    if dims is not None:
        log_px = torch.tensor(means.log_px, dtype=torch.float64)
        bits = evidence.bits_per_dim(log_px, dims, density=levels is not None, levels=levels)
        figures["bits_per_dim"] = float(bits)
    return figures


def _training_figures(history: History) -> dict[str, object]:
    speeds = torch.tensor(history["images_per_second"], dtype=torch.float64)
    return {
        "best_epoch": history.best_epoch,
        "epochs": len(history),
        "stopped_by": history.stopped_by,
        "images_per_second": float(speeds.quantile(0.5)),
        "compiled": history.compiled,
    }


def _validation_elbo(history: History) -> dict[str, float | None] | None:
    """Return the validation ELBO of the best epoch; None without validation data."""
    best = history.rows[history.best_epoch - 1]
    if "validation_elbo" not in best:
        return None
    error = best["validation_elbo_std_error"]
    return {"value": best["validation_elbo"], "std_error": error if math.isfinite(error) else None}
