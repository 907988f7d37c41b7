"""One run from start to end: data, model, fit, evidence, pictures, summary."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae import parallel, schedules
from pyro_vae.data import Data
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.training.batching import check_batches
from pyro_vae.inference.training.checkpoint import check_state
from pyro_vae.inference.training.fit import compiling_of, fit
from pyro_vae.inference.training.history import History
from pyro_vae.inference.training.training import Training, never
from pyro_vae.lookup import lookup
from pyro_vae.models.registry import constructor_parameters, model_class
from pyro_vae.runs.build import (
    callbacks,
    fit_options,
    load_data,
    make_objective,
    make_vae,
    with_num_classes,
    with_objective,
)
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import RunDirectory
from pyro_vae.runs.evaluation import summary
from pyro_vae.runs.evaluation.estimators import Estimation
from pyro_vae.runs.preflight.compatibility import center, check_fit, check_used
from pyro_vae.runs.preflight.trial_run import try_out
from pyro_vae.runs.preflight.user_errors import model_defaults
from pyro_vae.runs.progress import Console
from pyro_vae.runs.run import check_data
from pyro_vae.system.compiler import obstacle
from pyro_vae.system.randomness import own_randomness

#: Disk for everything of a run that does not grow with the model: pictures, metrics, generators.
SPARE_BYTES = 10_000_000


@dataclass(frozen=True)
class Prepared:
    """A run that has been checked and has not begun: nothing is written yet.

    Attributes:
        config: What it is.
        data: Its data, on the device.
        vae: Its model, on the device.
        device: Where.
        fingerprint: What tells its data from others.
        resume: The training state to go on from, or None.
        seconds: How long it has been trained before.
        compiling: Whether its steps are compiled, in words.
    """

    config: Config
    data: Data
    vae: Any
    device: torch.device
    fingerprint: dict[str, Any]
    resume: dict[str, Any] | None = None
    seconds: float = 0.0
    compiling: str = ""

    @property
    def disk_bytes(self) -> int:
        """What the run will write: an old and a new checkpoint, each of last and best parameters and two moments."""
        parameters = sum(v.numel() * v.element_size() for v in self.vae.state_dict().values())
        return 2 * 4 * parameters + SPARE_BYTES


def prepare(config: Config, device: torch.device, checkpoint: dict[str, Any] | None = None) -> Prepared:
    """Build and check everything a run needs, without writing anything.

    Args:
        config: What the run is.
        device: Where it shall run.
        checkpoint: What :meth:`RunDirectory.read_checkpoint` gave, to go on from.

    Raises:
        ValueError: If anything in the configuration is wrong.
    """
    with model_defaults(config):
        return _prepare(config, device, checkpoint)


def _prepare(config: Config, device: torch.device, checkpoint: dict[str, Any] | None) -> Prepared:
    t = config.train
    _check_numbers(config)
    fit_options(config)
    make_objective(config if t.elbo else with_objective(config, "trace"))
    Betas(schedules.parse_all(t.anneal, t.beta))
    callbacks(config)
    taken = constructor_parameters(model_class(config.model.model))
    if "likelihood" in taken:
        lookup("likelihood", config.model.likelihood, LIKELIHOODS)
    with parallel.local_main_first():  # to fetch data, or to make files beside them
        data = load_data(config)
    if t.patience is not None and data.validation is None:
        raise ValueError("patience: expected validation data to judge by, got --val-size 0; set some aside.")
    if "num_classes" in taken:
        config = with_num_classes(config, data)
    with own_randomness(t.seed):
        vae = make_vae(config, data.data_shape)
    if not t.elbo:
        config = with_objective(config, getattr(vae, "objective", None) or "trace")
    if checkpoint is None:
        check_used(config, vae)
    check_fit(config, vae, data)
    center(config, vae, data)
    check_batches(vae, data, make_objective(config), fit_options(config))
    try_out(config, vae, data)
    fingerprint = data.fingerprint()
    if checkpoint is not None:
        check_data(checkpoint["data"], fingerprint, "resume")
        check_state(checkpoint["training"], vae, "resume")
    state, seconds = _resumed(config, checkpoint)
    data, vae = data.to(device), vae.to(device)
    options = fit_options(config)
    options = options if state is None else dataclasses.replace(options, compile=None)
    compiled, words = compiling_of(vae, data, make_objective(config), options, state)
    # What was chosen is stored, so that the run goes on as it was begun.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=compiled))
    if t.check_every is not None and not compiled:
        raise ValueError(f"check_every: expected with compiled steps, got {t.check_every} with {words}; add --compile.")
    return Prepared(config, data, vae, device, fingerprint, state, seconds, words)


def _check_numbers(config: Config) -> None:
    Estimation(num_samples=config.evaluate.num_samples)
    if config.evaluate.compile_draws and (reason := obstacle()) is not None:
        raise ValueError(f"compile_draws: expected a machine that can compile, got one where {reason}; leave it out.")
    seeds = {"seed": config.train.seed, "data_seed": config.data.data_seed, "label_seed": config.data.label_seed}
    for name, seed in seeds.items():
        if not 0 <= seed < 2**63:
            raise ValueError(f"{name}: expected a whole number from 0 to 2^63 - 1, got {seed}.")


def _resumed(config: Config, checkpoint: dict[str, Any] | None) -> tuple[dict[str, Any] | None, float]:
    """The training state to go on from, and the seconds already spent."""
    if checkpoint is None:
        return None, 0.0
    state = checkpoint["training"]
    begun = len(state["rows"]) + (state["epoch"] is not None)
    if config.train.epochs < begun:
        raise ValueError(f"epochs: expected at least the {begun} that the run has begun, got {config.train.epochs}.")
    if config.train.patience != Config.from_dict(checkpoint["config"]).train.patience:
        state = {**state, "stop_reason": None}  # another patience, another verdict
    return state, checkpoint["seconds"]


def train(
    prepared: Prepared, directory: RunDirectory, console: Console, interrupt: Callable[[], bool] = never
) -> tuple[History, float]:
    """Fit the model, with a checkpoint an epoch, and one where it is interrupted.

    Args:
        prepared: The run.
        directory: Where its files go.
        console: Prints the lines, and decides whether a bar is shown.
        interrupt: Asked after every step whether to stop there.

    Returns:
        The history, and the seconds that training took in all its sessions.
    """
    config = prepared.config
    with parallel.shared_errors():
        directory.write_json("config.json", config.to_dict())
        if prepared.resume is not None:
            directory.write_metrics(
                prepared.resume["rows"]
            )  # a kill may have come after the checkpoint and before them
    started, seconds = time.perf_counter() - prepared.seconds, prepared.seconds

    def checkpoint(training: Training) -> None:
        nonlocal seconds
        seconds = time.perf_counter() - started
        directory.save(training, config, seconds, prepared.fingerprint)

    history = fit(
        prepared.vae,
        prepared.data,
        elbo=make_objective(config, len(prepared.data.train.x)),
        beta=schedules.parse_all(config.train.anneal, config.train.beta),
        **dataclasses.asdict(fit_options(config)),
        callbacks=[*callbacks(config), checkpoint],
        resume=prepared.resume,
        interrupt=interrupt,
        progress=not console.quiet,
    )
    return history, seconds


def load_libraries() -> None:
    """Import what evaluation and pictures need, which nothing before the end does."""
    from pyro_vae import report  # noqa: F401
    from pyro_vae.system.imports import import_arviz

    import_arviz()


def finish(prepared: Prepared, history: History, directory: RunDirectory, seconds: float, console: Console) -> None:
    """Evaluate a trained model, write the summary and the pictures, and say what came out."""
    from pyro_vae.report import draw_pictures  # brings matplotlib, which nothing before the end needs

    config, vae, data = prepared.config, prepared.vae, prepared.data
    found, estimate = summary.evaluate(config, vae, data, history, seconds, progress=not console.quiet)
    if not directory.writes:
        return
    directory.write_json("summary.json", found)
    console.line(summary.table(found))
    pictures = draw_pictures(vae, data, history, directory.path, config.train.seed, estimate)
    console.line(f"{directory.path}: summary.json, metrics.csv, checkpoint.pt, {', '.join(p.name for p in pictures)}")
