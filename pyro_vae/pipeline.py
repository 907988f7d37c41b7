"""One run from start to end: data, model, fit, evidence, pictures, summary."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pyro_vae
from pyro_vae import evidence, schedules
from pyro_vae.config import Config
from pyro_vae.data import Data
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.evidence import Estimate, Summary
from pyro_vae.inference.loop import Callback, check_options, early_stopping, fit
from pyro_vae.inference.objectives import elbo
from pyro_vae.inference.training import History, Training
from pyro_vae.lookup import lookup
from pyro_vae.models import VAE
from pyro_vae.runs import SCHEMA, Run, RunDirectory, load_data, make_vae

#: Data of one call of an estimator: with 10 draws each, a chunk of 1,000 rows, which stays in the processor's cache.
EVALUATION_BATCH = 100

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A run that has been checked and has not begun: nothing is written yet.

    Attributes:
        config: What it is.
        data: Its data, on the device.
        vae: Its model, on the device.
        device: Where.
        resume: The training state to go on from, or None.
    """

    config: Config
    data: Data
    vae: VAE
    device: torch.device
    resume: dict[str, Any] | None = None


def resolve_device(text: str) -> tuple[torch.device, str]:
    """The device, and in words which one and why.

    Args:
        text: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ValueError: If the name is none of these, or the device is not there.
    """
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"cuda ({torch.cuda.get_device_name()})"
        return torch.device("cpu"), "cpu (no CUDA device found)"
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {text!r}.")
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise ValueError(
            f"device: expected one that this machine has, got {text!r}, which is not there; use --device cpu."
        )
    return device, text


def prepare(config: Config, device: torch.device, checkpoint: dict[str, Any] | None = None) -> Prepared:
    """Build and check everything a run needs, without writing anything.

    Args:
        config: What the run is.
        device: Where it shall run.
        checkpoint: What :meth:`RunDirectory.read_checkpoint` gave, to go on from.

    Raises:
        ValueError: If anything in the configuration is wrong.
    """
    t = config.train
    check_options(t.epochs, t.batch_size, t.optimizer, t.lr, t.lr_schedule, t.clip_norm)
    make_objective(config)
    schedules.parse(t.anneal, t.beta)
    callbacks(config)
    _check_samples(config.evaluate.num_samples)
    lookup("likelihood", config.model.likelihood, LIKELIHOODS)
    data = load_data(config)
    if t.patience is not None and data.validation is None:
        raise ValueError("patience: expected validation data to judge by, got --val-size 0; set some aside.")
    check_support(config, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        vae = make_vae(config, data.data_shape)
    vae.center_output(data.train.x.mean(0))
    resume = checkpoint["training"] if checkpoint else None
    return Prepared(config, data.to(device), vae.to(device), device, resume)


def _check_samples(num_samples: int) -> None:
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2 importance samples, for an error, got {num_samples}.")


def make_objective(config: Config) -> Any:
    """The objective that a configuration names."""
    t = config.train
    # The data plate is the only one; said here, Pyro need not run the model to find out.
    return elbo(t.elbo, num_particles=t.num_particles, vectorize_particles=t.vectorize_particles, max_plate_nesting=1)


def callbacks(config: Config) -> list[Callback]:
    """The callbacks that a configuration asks for."""
    return [] if config.train.patience is None else [early_stopping(config.train.patience)]


def check_support(config: Config, data: Data) -> None:
    """Refuse pixels that a likelihood gives no probability.

    Raises:
        ValueError: If they are grey under a Bernoulli, or outside [0, 1] under a continuous one.
    """
    support = LIKELIHOODS[config.model.likelihood].support
    x = data.train.x
    if support == "binary" and not data.redraw and bool(((x != 0) & (x != 1)).any()):
        raise ValueError(
            "likelihood bernoulli: expected pixels of 0 and 1, got grey ones, of which it is no likelihood; binarize them "
            "(--binarize dynamic), or take --likelihood continuous-bernoulli."
        )


def train(prepared: Prepared, directory: RunDirectory, say: Say) -> tuple[History, float]:
    """Fit the model, with a checkpoint an epoch.

    Args:
        prepared: The run.
        directory: Where its files go.
        say: Receives a line of text; None is quiet.

    Returns:
        The history, and the seconds that it took.
    """
    config, t = prepared.config, prepared.config.train
    directory.write_json("config.json", config.to_dict())

    def checkpoint(training: Training) -> None:
        directory.save(training, config)

    started = time.perf_counter()
    history = fit(
        prepared.vae,
        prepared.data,
        elbo=make_objective(config),
        epochs=t.epochs,
        batch_size=t.batch_size,
        optimizer=t.optimizer,
        lr=t.lr,
        lr_schedule=t.lr_schedule,
        clip_norm=t.clip_norm,
        beta=schedules.parse(t.anneal, t.beta),
        seed=t.seed,
        callbacks=[*callbacks(config), checkpoint],
        resume=prepared.resume,
        progress=say is not silent,
    )
    return history, time.perf_counter() - started


def silent(line: str) -> None:
    """Say nothing."""


def estimate(vae: VAE, x: Tensor, num_samples: int, seed: int, progress: bool = False) -> Estimate:
    """Importance-sampled log p(x) of test images, in batches, from generators of its own.

    Args:
        vae: The model.
        x: Images, shape ``(N, *data_shape)``.
        num_samples: K.
        seed: Seed of the draws.
        progress: Whether to show a bar on a terminal.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    parts = x.split(EVALUATION_BATCH)
    shown: Iterable[Tensor] = tqdm(
        parts, disable=None if progress else True, unit="batch", leave=False, desc="log p(x)"
    )
    vae.eval()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return Estimate.cat(
            [evidence.importance_sampling(vae.model, vae.guide, part, num_samples=num_samples) for part in shown]
        )


@torch.no_grad()
def active_units(vae: VAE, x: Tensor) -> int:
    """How many latent units vary with the data, see :func:`evidence.active_units`."""
    means = torch.cat([vae.encode(part).mean.cpu() for part in x.split(1000)])
    return int(evidence.active_units(means).sum())


def evaluate(prepared: Prepared, history: History, train_seconds: float | None, progress: bool) -> dict[str, Any]:
    """The summary of a run: what ``summary.json`` holds.

    Args:
        prepared: The run, its model trained.
        history: Its history.
        train_seconds: How long training took, or None where that is not known.
        progress: Whether to show a bar on a terminal.

    Returns:
        Nested plain containers; every figure in nats per datum, higher is better.
    """
    config, vae, test = prepared.config, prepared.vae, prepared.data.test
    if test is None:
        raise ValueError("test data: expected some to evaluate on, got none.")
    started = time.perf_counter()
    found = estimate(vae, test.x, config.evaluate.num_samples, config.train.seed, progress).summary()
    best = history.rows[history.best_epoch - 1]
    return {
        "test": {**_test_figures(found), "active_units": active_units(vae, test.x)},
        "validation": {
            "elbo": {"value": best["validation_elbo"], "std_error": best["validation_elbo_std_error"]}
            if "validation_elbo" in best
            else None
        },
        "units": "nats per datum",
        "density": LIKELIHOODS[config.model.likelihood].support != "binary",
        "schema": SCHEMA,
        "seconds": {"train": train_seconds, "evaluate": time.perf_counter() - started},
        "best_epoch": history.best_epoch,
        "epochs": len(history),
        "stopped_by": history.stopped_by,
        "images_per_second": _median(history["images_per_second"]),
        "compiled": False,
        "device": str(prepared.device),
        "threads": torch.get_num_threads(),
        "seed": config.train.seed,
        "versions": {"pyro_vae": pyro_vae.__version__}
        | {p: version(p) for p in ("torch", "pyro-ppl", "numpy", "arviz")},
    }


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
        f"{test['active_units']} active units",
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


def finish(prepared: Prepared, history: History, directory: RunDirectory, seconds: float | None, say: Say) -> None:
    """Evaluate a trained model, write the summary and the pictures, and say what came out."""
    from pyro_vae.report import draw_pictures  # brings matplotlib, which nothing before the end needs

    summary = evaluate(prepared, history, seconds, progress=say is not silent)
    directory.write_json("summary.json", summary)
    say(table(summary))
    pictures = draw_pictures(prepared.vae, prepared.data, history, directory.path, prepared.config.train.seed)
    say(f"{directory.path}: summary.json, metrics.csv, checkpoint.pt, {', '.join(p.name for p in pictures)}")


def reevaluate(run: Run, device: torch.device, num_samples: int | None, say: Say) -> dict[str, Any]:
    """Evaluate a finished run again, and bring its ``summary.json`` up to date.

    Args:
        run: What :func:`pyro_vae.load` gave.
        device: Where to evaluate.
        num_samples: K; None: the run's own.
        say: Receives the table.

    Returns:
        The summary.

    Raises:
        ValueError: If ``num_samples`` is below 2.
    """
    config = run.config
    if num_samples is not None:
        _check_samples(num_samples)
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, num_samples=num_samples))
    before = run.summary
    prepared = Prepared(config, run.data().to(device), run.vae.to(device), device)
    history = dataclasses.replace(run.history, stopped_by=before.get("stopped_by", "interrupted"))
    seconds = before.get("seconds", {}).get("train")
    summary = evaluate(prepared, history, seconds, progress=say is not silent)
    RunDirectory(run.path).write_json("summary.json", summary)
    say(table(summary))
    return summary


def describe(prepared: Prepared, device_words: str) -> str:
    """What is about to be run, in three lines."""
    vae, config = prepared.vae, prepared.config
    sizes = " x ".join(map(str, vae.data_shape))
    count = sum(p.numel() for p in vae.parameters())
    hidden = "-".join(map(str, config.model.hidden)) or "no hidden layer"
    steps = math.ceil(len(prepared.data.train.x) / config.train.batch_size)
    return (
        f"pyro_vae {pyro_vae.__version__}, torch {version('torch')}, Pyro {version('pyro-ppl')}, device {device_words}, "
        f"{torch.get_num_threads()} threads\n"
        f"{prepared.data.name}: {prepared.data.sizes} images of {sizes}, binarize {prepared.data.binarize}\n"
        f"VAE: latent_dim {vae.latent_dim}, hidden {hidden}, {config.model.likelihood} likelihood, {count:,} parameters; "
        f"objective {config.train.elbo}, {steps} steps an epoch"
    )
