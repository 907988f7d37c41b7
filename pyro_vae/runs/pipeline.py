"""A run from start to end: prepare, train, finish."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from pyro_vae import parallel
from pyro_vae.inference.training.batching import check_batches
from pyro_vae.inference.training.checkpoint import check_state
from pyro_vae.inference.training.fit import compiling_of, fit
from pyro_vae.inference.training.history import History
from pyro_vae.inference.training.training import Training, never
from pyro_vae.models.user_code import place_of_method
from pyro_vae.runs.build import Plan, make_plan
from pyro_vae.runs.config import Config
from pyro_vae.runs.directory import Checkpoint, RunDirectory
from pyro_vae.runs.evaluation import summary, tables
from pyro_vae.runs.evaluation.estimators import Estimation
from pyro_vae.runs.preflight.compatibility import check_compatibility, check_network_options
from pyro_vae.runs.preflight.trial_run import run_trial
from pyro_vae.runs.preflight.user_errors import class_settings_errors, method_error
from pyro_vae.runs.progress import Console
from pyro_vae.runs.run import check_data
from pyro_vae.system.compiler import obstacle


def prepare(config: Config, device: torch.device, checkpoint: Checkpoint | None = None) -> Plan:
    """Make and check all parts of a run, without writing anything.

    Args:
        config: The configuration.
        device: The device to train on.
        checkpoint: The checkpoint of a run to continue, from :meth:`RunDirectory.read_checkpoint`; None for a new run.

    Returns:
        The plan, on the device.

    Raises:
        ValueError: If anything in the configuration is wrong.
    """
    with class_settings_errors(config):
        _check_numbers(config)
        plan = make_plan(config)
        if checkpoint is None:
            check_network_options(plan)
        check_compatibility(plan)
        if checkpoint is None:
            start_from_data(plan)
        check_batches(plan.vae, plan.data, plan.objective, plan.options)
        run_trial(plan)
        plan = dataclasses.replace(plan, fingerprint=plan.data.fingerprint())
        if checkpoint is not None:
            plan = _continued(plan, checkpoint)
        plan = dataclasses.replace(plan, data=plan.data.to(device), vae=plan.vae.to(device), device=device)
        return _with_compiling(plan)


def _check_numbers(config: Config) -> None:
    Estimation(num_samples=config.evaluate.num_samples)
    if config.evaluate.compile_draws and (reason := obstacle()) is not None:
        raise ValueError(f"compile_draws: this machine cannot compile: {reason}; remove --compile-draws.")
    seeds = {"seed": config.train.seed, "data_seed": config.data.data_seed, "label_seed": config.data.label_seed}
    for name, seed in seeds.items():
        if not 0 <= seed < 2**63:
            raise ValueError(f"{name}: expected a whole number from 0 to 2^63 - 1, got {seed}.")


def start_from_data(plan: Plan) -> None:
    """Let the decoder start at the mean of the training data.

    The model's hook ``center_output`` runs before the first training step of a new run. It does not run on resume.

    Raises:
        ValueError: If the hook of a user's class fails.
    """
    config, vae = plan.config, plan.vae
    if not hasattr(vae, "center_output"):
        return
    moments = plan.data.moments()
    try:
        vae.center_output(*moments)
    except Exception as error:
        if isinstance(error, ValueError) and not place_of_method(vae, "center_output"):  # raised by the package itself
            if config.model.decoder is None:
                raise
            return  # a user's decoder may have no output bias to set
        if (sentence := method_error(config.model.model, vae, "center_output", error)) is None:
            raise
        raise ValueError(sentence) from error


def _continued(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return the plan, with the training state that the checkpoint holds."""
    check_data(checkpoint["data"], plan.fingerprint, "resume")
    check_state(checkpoint["training"], plan.vae, "resume")
    t, state = plan.config.train, checkpoint["training"]
    begun = len(state["rows"]) + (state["epoch"] is not None)
    if t.epochs < begun:
        raise ValueError(f"epochs: expected at least the {begun} that the run has begun, got {t.epochs}.")
    if t.patience != Config.from_dict(checkpoint["config"]).train.patience:
        state = {**state, "stop_reason": None}  # it was decided with another patience
    return dataclasses.replace(plan, resume=state, seconds=checkpoint["seconds"])


def _with_compiling(plan: Plan) -> Plan:
    """Decide if training steps are compiled; store the decision in the configuration."""
    t = plan.config.train
    options = plan.options if plan.resume is None else dataclasses.replace(plan.options, compile=None)
    compiled, words = compiling_of(plan.vae, plan.data, plan.objective, options, plan.resume)
    if t.check_every is not None and not compiled:
        raise ValueError(f"check_every: {t.check_every} needs compiled training steps, got {words}; add --compile.")
    config = dataclasses.replace(plan.config, train=dataclasses.replace(t, compile=compiled))
    options = dataclasses.replace(plan.options, compile=compiled)
    return dataclasses.replace(plan, config=config, options=options, compiling=words)


def train(
    plan: Plan, directory: RunDirectory, console: Console, interrupt: Callable[[], bool] = never
) -> tuple[History, float]:
    """Fit the model; write a checkpoint at each epoch and interruption.

    Args:
        plan: The run.
        directory: The folder for its files.
        console: Prints a line for each epoch and shows a progress bar, unless quiet.
        interrupt: Function called after every training step; training stops if the function returns True.

    Returns:
        The history, and the training time in all sessions, seconds.
    """
    with parallel.shared_errors():
        directory.write_json("config.json", plan.config.to_dict())
        if plan.resume is not None:  # the process may have been killed between checkpoint and metrics
            directory.write_metrics(plan.resume["rows"])
    started, seconds = time.perf_counter() - plan.seconds, plan.seconds

    def checkpoint(training: Training) -> None:
        nonlocal seconds
        seconds = time.perf_counter() - started
        directory.save(training, plan.config, seconds, plan.fingerprint)

    history = fit(
        plan.vae,
        plan.data,
        elbo=plan.objective,
        beta=plan.beta,
        **dataclasses.asdict(plan.options),
        callbacks=[*plan.callbacks, checkpoint],
        resume=plan.resume,
        interrupt=interrupt,
        progress=not console.quiet,
    )
    return history, seconds


def load_libraries() -> None:
    """Import the libraries that only evaluation and pictures need."""
    from pyro_vae.report import draw_pictures  # noqa: F401
    from pyro_vae.system.imports import import_arviz

    import_arviz()


def finish(plan: Plan, history: History, directory: RunDirectory, seconds: float, console: Console) -> None:
    """Evaluate the trained model; draw its pictures, write and print its summary."""
    from pyro_vae.report import draw_pictures  # brings matplotlib

    config, vae, data = plan.config, plan.vae, plan.data
    figures, estimate = summary.evaluate(config, vae, data, history, seconds, progress=not console.quiet)
    if not directory.writes:
        return
    directory.write_json("summary.json", figures)
    console.line(tables.summary_table(figures))
    pictures = draw_pictures(vae, data, history, directory.path, config.train.seed, estimate)
    console.line(f"{directory.path}: summary.json, metrics.csv, checkpoint.pt, {', '.join(p.name for p in pictures)}")
