"""One run from start to end: data, model, fit, evidence, pictures, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_vae
from pyro_vae import parallel, schedules, summary
from pyro_vae.compiling import obstacle
from pyro_vae.config import Config
from pyro_vae.data import Data, Split, binarize
from pyro_vae.data.stored import rows_of
from pyro_vae.distributions import LIKELIHOODS
from pyro_vae.estimation import Estimation
from pyro_vae.inference.betas import Betas
from pyro_vae.inference.kl_control import Capacity, FreeBits, MinimumRate, TargetRate
from pyro_vae.inference.loop import Callback, compiling_of, early_stopping, fit
from pyro_vae.inference.registry import OBJECTIVES, elbo, options_of
from pyro_vae.inference.state import check_state
from pyro_vae.inference.total_correlation import TotalCorrelation
from pyro_vae.inference.training import FitOptions, History, Training, epoch_order, never
from pyro_vae.lookup import lookup
from pyro_vae.models.protocol import check_columns, check_model, support_of, takes, told
from pyro_vae.models.registry import model_class, parameters
from pyro_vae.randomness import own_randomness
from pyro_vae.runs import RunDirectory, check_data, load_data, make_vae

Say = Callable[[str], None]

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
    t = config.train
    _check_numbers(config)
    fit_options(config)
    make_objective(config)
    Betas(schedules.parse_all(t.anneal, t.beta))
    callbacks(config)
    taken = parameters(model_class(config.model.model))
    if "likelihood" in taken:
        lookup("likelihood", config.model.likelihood, LIKELIHOODS)
    with parallel.one_first():  # to fetch data, or to make files beside them
        data = load_data(config)
    if t.patience is not None and data.validation is None:
        raise ValueError("patience: expected validation data to judge by, got --val-size 0; set some aside.")
    if "num_classes" in taken:
        config = _counted(config, data)
    with own_randomness(t.seed):
        vae = make_vae(config, data.data_shape)
    _check_fit(config, vae, data)
    _center(config, vae, data)
    _try_out(config, vae, data)
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
    config = dataclasses.replace(config, train=dataclasses.replace(t, compile=compiled))
    if t.check_every is not None and not compiled:
        raise ValueError(f"check_every: expected with compiled steps, got {t.check_every} with {words}; add --compile.")
    return Prepared(config, data, vae, device, fingerprint, state, seconds, words)


def _counted(config: Config, data: Data) -> Config:
    """With the number of classes, which a model that takes labels must know, from the data where none is named."""
    number = config.model.num_classes or data.num_classes
    if number is None:
        raise ValueError(
            f"labels: expected some for --model {config.model.model}, got {Path(data.name).name} without; take data with "
            "labels, or another model."
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=number))


def _check_fit(config: Config, vae: Any, data: Data) -> None:
    """Refuse a model that lacks a part of the protocol, and data that it can make nothing of."""
    check_model(vae, f"model {config.model.model}")
    if config.data.labels is not None and "y" not in takes(vae):
        raise ValueError(
            f"labels: expected with a model that takes labels, got {config.data.labels:,} with --model {config.model.model}; "
            "drop it."
        )
    check_columns(vae, data)
    check_support(vae, data)


def _center(config: Config, vae: Any, data: Data) -> None:
    """Let p(x|z) start at the data's mean; a decoder of the user's may have nothing to set it by."""
    if hasattr(vae, "center_output"):
        with contextlib.suppress(*([] if config.model.decoder is None else [ValueError])):
            vae.center_output(*data.moments())


def _try_out(config: Config, vae: Any, data: Data) -> None:
    """Evaluate the objective once, on two data, so that what it refuses is said before anything is written."""
    t = config.train
    x, *others = told(vae, data.train)[_two(data.train)]
    pair = Betas(schedules.parse_all(t.anneal, t.beta)).apply(vae.model, vae.guide)
    with own_randomness(t.seed), pyro.get_param_store().scope(), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="TraceEnum_ELBO found no sample sites")
        try:
            make_objective(config).terms(*pair, binarize(x, "threshold") if data.redraw else x, *others)
        except UserWarning:
            raise ValueError(
                "elbo enum: expected a model with sites to enumerate, got one whose only latent site 'z' is continuous; use "
                "--elbo trace or mean-field."
            ) from None
        except ValueError as error:  # Pyro adds a table of shapes below the sentence
            raise ValueError(str(error).strip().splitlines()[0]) from None


def _two(split: Split) -> Tensor:
    """Two data, one with a label and one without where there are both."""
    if split.y is None or split.y.dim() > 1:
        return torch.arange(min(2, len(split.x)))
    return torch.stack([split.y.argmin(), split.y.argmax()]).cpu()


def _check_numbers(config: Config) -> None:
    Estimation(num_samples=config.evaluate.num_samples)
    if config.evaluate.compile_draws and (reason := obstacle()) is not None:
        raise ValueError(f"compile_draws: expected a machine that can compile, got one where {reason}; leave it out.")
    for name, seed in {"seed": config.train.seed, "data_seed": config.data.data_seed}.items():
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


def make_objective(config: Config) -> Any:
    """The objective that a configuration names."""
    t = config.train
    # The data plate is the only one; said here, Pyro need not run the model to find out.
    options: dict[str, Any] = {"max_plate_nesting": 1}
    if t.vectorize_particles:
        options["vectorize_particles"] = True
    for name in ("num_particles", "num_groups", "alpha", "elbo_weight", "partitions"):
        if (value := getattr(t, name)) is not None:
            if name not in options_of(t.elbo):
                others = " or ".join(other for other in OBJECTIVES if name in options_of(other))
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected with --elbo {others}, got --elbo {t.elbo}; drop it."
                )
            options[name] = value
    _check_companions(config)
    return _controlled(elbo(t.elbo, **options), config)


def _check_companions(config: Config) -> None:
    """Refuse a flag that would do nothing without another."""
    t = config.train
    if t.free_bits is None and t.free_bits_per != "unit":
        raise ValueError(f"free_bits_per: expected with --free-bits, got {t.free_bits_per!r} alone; drop it.")
    if t.capacity is None and t.capacity_weight != 100.0:
        raise ValueError(f"capacity_weight: expected with --capacity, got {t.capacity_weight:g} alone; drop it.")


def _controlled(objective: Any, config: Config) -> Any:
    """The objective under what a configuration asks of the KL beyond a weight."""
    t = config.train
    controls = ("free_bits", "min_rate", "capacity", "target_rate", "total_correlation")
    asked = [name for name in controls if getattr(t, name) is not None]
    if len(asked) > 1:
        raise ValueError(f"{asked[1]}: expected without {asked[0]}, since both bend the KL, got both; drop one.")
    if t.free_bits is not None:
        return FreeBits(objective, t.free_bits, t.free_bits_per)
    if t.min_rate is not None:
        return MinimumRate(objective, t.min_rate)
    if t.target_rate is not None:
        return TargetRate(objective, t.target_rate)
    if t.total_correlation is not None:
        return TotalCorrelation(objective, t.total_correlation)
    if t.capacity is not None:
        nats, _, steps = t.capacity.partition(":")
        try:
            return Capacity(objective, float(nats), int(steps or 1), t.capacity_weight)
        except ValueError as error:
            if str(error).startswith("capacity"):
                raise
            raise ValueError(f"capacity: expected NATS or NATS:STEPS such as 25:5000, got {t.capacity!r}.") from None
    return objective


def fit_options(config: Config) -> FitOptions:
    """The options of ``fit`` that a configuration names."""
    values = dataclasses.asdict(config.data) | dataclasses.asdict(config.train)
    return FitOptions(**{f.name: values[f.name] for f in dataclasses.fields(FitOptions)})


def callbacks(config: Config) -> list[Callback]:
    """The callbacks that a configuration asks for."""
    return [] if config.train.patience is None else [early_stopping(config.train.patience)]


def check_support(vae: Any, data: Data) -> None:
    """Refuse pixels that a model's likelihood gives no probability.

    Raises:
        ValueError: If they are grey under a Bernoulli, or outside [0, 1] under a continuous one.
    """
    support = support_of(vae)
    parts = data.train.x.split(rows_of(data.train.x.shape))
    if support == "binary" and not data.redraw and any(bool(((x != 0) & (x != 1)).any()) for x in parts):
        raise ValueError(
            "likelihood bernoulli: expected pixels of 0 and 1, got grey ones, of which it is no likelihood; binarize them "
            "(--binarize dynamic), or take --likelihood continuous-bernoulli."
        )
    if support == "unit":
        for x in parts:
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise ValueError(
                    f"likelihood continuous-bernoulli: expected pixels in [0, 1], got {float(x.min()):g} to "
                    f"{float(x.max()):g}; rescale them, or take --likelihood normal."
                )


def train(
    prepared: Prepared, directory: RunDirectory, say: Say, interrupt: Callable[[], bool] = never
) -> tuple[History, float]:
    """Fit the model, with a checkpoint an epoch, and one where it is interrupted.

    Args:
        prepared: The run.
        directory: Where its files go.
        say: Receives a line of text.
        interrupt: Asked after every step whether to stop there.

    Returns:
        The history, and the seconds that training took in all its sessions.
    """
    config = prepared.config
    with parallel.together():
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
        elbo=make_objective(config),
        beta=schedules.parse_all(config.train.anneal, config.train.beta),
        **dataclasses.asdict(fit_options(config)),
        callbacks=[*callbacks(config), checkpoint],
        resume=prepared.resume,
        interrupt=interrupt,
        progress=say is not silent,
    )
    return history, seconds


def silent(line: str) -> None:
    """Say nothing."""


def load_libraries() -> None:
    """Import what evaluation and pictures need, which nothing before the end does."""
    from pyro_vae import report  # noqa: F401
    from pyro_vae.imports import import_arviz

    import_arviz()


def finish(prepared: Prepared, history: History, directory: RunDirectory, seconds: float, say: Say) -> None:
    """Evaluate a trained model, write the summary and the pictures, and say what came out."""
    from pyro_vae.report import draw_pictures  # brings matplotlib, which nothing before the end needs

    config, vae, data = prepared.config, prepared.vae, prepared.data
    found, estimate = summary.evaluate(config, vae, data, history, seconds, progress=say is not silent)
    if not directory.writes:
        return
    directory.write_json("summary.json", found)
    say(summary.table(found))
    pictures = draw_pictures(vae, data, history, directory.path, config.train.seed, estimate)
    say(f"{directory.path}: summary.json, metrics.csv, checkpoint.pt, {', '.join(p.name for p in pictures)}")


def describe(prepared: Prepared, device_words: str) -> str:
    """What is about to be run, in three lines."""
    vae, config = prepared.vae, prepared.config
    count = sum(p.numel() for p in vae.parameters())
    order = epoch_order(vae, prepared.data, fit_options(config))
    steps = math.ceil(order.total / config.train.batch_size)
    return (
        f"pyro_vae {pyro_vae.__version__}, torch {version('torch')}, Pyro {version('pyro-ppl')}, device {device_words}, "
        f"{torch.get_num_threads()} threads\n"
        f"{_data_words(prepared)}, binarize {prepared.data.binarize}\n"
        f"{_model_words(config, type(vae))}, {count:,} parameters; "
        f"objective {config.train.elbo}, {steps} steps an epoch; {prepared.compiling}" + _stopped(prepared)
    )


def _model_words(config: Config, cls: type) -> str:
    """The model with what its constructor takes."""
    m, taken = config.model, parameters(cls)
    words = {
        "latent_dim": f"latent_dim {m.latent_dim}",
        "hidden": f"hidden {'-'.join(map(str, m.hidden)) or 'no hidden layer'}",
        "likelihood": f"{m.likelihood} likelihood",
        "num_classes": f"{m.num_classes} classes",
        "encoder": f"encoder {m.encoder}" if m.encoder else "",
        "decoder": f"decoder {m.decoder}" if m.decoder else "",
    }
    said = [word for name, word in words.items() if name in taken and word]
    return f"{cls.__name__}: {', '.join([*said, *m.model_options])}"


def _data_words(prepared: Prepared) -> str:
    data = prepared.data
    sizes = " x ".join(map(str, data.data_shape))
    words = f"{data.words}\n" if data.words else ""
    labels = (
        f", {int((data.train.y >= 0).sum()):,} labels"
        if prepared.config.data.labels and data.train.y is not None
        else ""
    )
    where = "" if isinstance(data.train.x, Tensor) else ", read a batch at a time"
    if not where and prepared.config.data.num_workers:
        where = ", held in memory, so that --num-workers has nothing to do"
    return f"{words}{Path(data.name).name}: {data.sizes} {data.noun} of {sizes}{labels}{where}"


def _stopped(prepared: Prepared) -> str:
    """Why a resumed run is not trained further although epochs are left; nothing where it is."""
    state = prepared.resume
    if state is None or state["stop_reason"] is None or len(state["rows"]) >= prepared.config.train.epochs:
        return ""
    return f"\nstopped by {state['stop_reason']} at epoch {len(state['rows'])}; pass another --patience to go on"
