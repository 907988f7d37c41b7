"""``fit``: epochs of SVI steps over data in memory, and callbacks for everything else."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
from tqdm import tqdm

from pyro_vae import parallel
from pyro_vae.data import Data
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.kl.registry import CONTROLS, controlled
from pyro_vae.inference.objectives.bound import DRAWN_INSTEAD
from pyro_vae.inference.objectives.registry import default_objective
from pyro_vae.inference.objectives.registry import elbo as make_elbo
from pyro_vae.inference.training.batching import check_batches, epoch_order
from pyro_vae.inference.training.history import History, header, line, so_far
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.inference.training.training import Training, never
from pyro_vae.models.checks import TrainingData, as_data, check_inputs, check_model, warn_about_labels
from pyro_vae.models.protocol import has_bound
from pyro_vae.schedules import Schedule
from pyro_vae.system import compiler
from pyro_vae.system.randomness import own_randomness

Callback = Callable[[Training], None]


def early_stopping(patience: int) -> Callback:
    """A callback that stops training when the validation ELBO has not risen for ``patience`` epochs.

    Args:
        patience: How many epochs to wait, at least 1.

    Raises:
        ValueError: If ``patience`` is below 1.
    """
    if patience < 1:
        raise ValueError(f"patience: expected at least 1 epoch, got {patience}; leave it out to train all epochs.")

    def check(training: Training) -> None:
        if training.data.validation is not None and len(training.history) - training.history.best_epoch >= patience:
            training.stop("patience")

    return check


def fit(
    model: Any,
    data: TrainingData,
    *,
    elbo: Any = None,
    epochs: int = 100,
    batch_size: int = 128,
    optimizer: str = "adam",
    lr: float = 1e-3,
    lr_schedule: str = "constant",
    clip_norm: float | None = None,
    num_workers: int = 0,
    labelled_per_batch: int | None = None,
    beta: float | Schedule | Mapping[str, float | Schedule] | None = None,
    seed: int = 0,
    compile: bool | None = None,
    precision: str = "float32",
    check_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    resume: dict[str, Any] | None = None,
    interrupt: Callable[[], bool] = never,
    progress: bool = True,
) -> History:
    r"""Train a model and its guide by SVI, maximizing :math:`E_q[\log p(x|z)] - \beta_t KL(q(z|x) \| p(z))`.

    Independent of what ran before it in the process: it brings its own random numbers, from ``seed``, and leaves the
    caller's generators and parameter store as they were. At the end the model holds the parameters of the epoch with
    the highest validation ELBO, or of the last one where there is no validation data.

    Args:
        model: A ``torch.nn.Module`` with Pyro functions ``model`` and ``guide``, such as :class:`pyro_vae.VAE`; see
            ``pyro_vae.models.protocol`` for what else it may say.
        data: A :class:`pyro_vae.data.Data`; or training data alone, shape ``(N, *data_shape)``, or, of a model that takes
            several columns, a tuple of these.
        elbo: Name of an objective, or one from :func:`pyro_vae.elbo`, which is taken as it is; None: what the model wants,
            else ``"trace"``. A name, and None, come with what the model's ``defaults`` ask of the KL besides.
        epochs: How many passes over the training data, in total.
        batch_size: B.
        optimizer: A name from ``OPTIMIZERS``.
        lr: Learning rate.
        lr_schedule: ``"constant"``, ``"cosine"`` (to 0) or ``"step"`` (a tenth at half, again at three quarters).
        clip_norm: Largest norm of the whole gradient of the loss per datum; None: no clipping.
        num_workers: Processes that read ahead, where the data are stored on the disk and not in memory.
        labelled_per_batch: Where some labels are unknown, how many of a batch's data have one: labelled data then come, and
            count, as often as that takes. None: every datum once an epoch, the labelled ones evenly spread; but 1 for a
            model that classifies, where there are fewer of them than batches.
        beta: Weight of the KL: a number, or a schedule of the step, such as ``schedules.linear(0., 1., steps=1000)``,
            or one of these for each of some sites, ``{"z1": 0.5}``; sites that are not named keep weight 1. None: what the
            model's ``defaults`` say where the objective takes one, else 1.
        seed: Seed of the data order, the binarization and the draws.
        compile: Whether to compile the step (docs/speed.md); None: if the run is long enough to repay it and a compiler
            works here, and, of a run that is resumed, as it was begun.
        precision: ``"float32"``, or ``"bf16"`` for the products of the networks; see :class:`pyro_vae.SVI`.
        check_every: Compare a compiled step with an eager one every so many steps; see :class:`pyro_vae.SVI`.
        callbacks: Called with the :class:`Training` after each epoch, and once more where ``interrupt`` ends one before
            its time; then ``training.progress`` is not None, and there is no row for it.
        resume: What :meth:`Training.state_dict` gave, to go on from there, exactly, within an epoch or between two.
        interrupt: Asked after every step whether to stop there; once True, it must stay so.
        progress: Whether to print a line an epoch, and a bar on a terminal.

    Returns:
        The history: true bounds in nats per datum.

    Raises:
        TypeError: If the model is no ``nn.Module``.
        ValueError: If a number is out of its range, a name is unknown, the model lacks a part of the protocol or takes what
            the data do not have, a batch is too small, ``enum`` finds no discrete site to sum over, ``resume`` is not the state
            of such a run, or ``compile`` is asked for where it is not possible.
        NonFiniteLossError: If the loss becomes NaN or infinite; the model is left as it then is, and what callbacks saved
            is the last whole epoch.
    """
    check_model(model)
    data = as_data(model, data)
    if len(data.train.x) == 0:
        raise ValueError("data: expected at least one training datum, got none.")
    check_inputs(model, data)
    if resume is None:
        warn_about_labels(model, data)
    if not has_bound(model) and beta is not None and not Betas(beta).plain:
        got = "weights of sites" if isinstance(beta, Mapping) else "a schedule" if callable(beta) else beta
        raise ValueError(
            f"beta: expected with a model that has a KL to weight, got {got} with {type(model).__name__}, which has none; "
            "drop it."
        )
    options = FitOptions(
        epochs,
        batch_size,
        optimizer,
        lr,
        lr_schedule,
        clip_norm,
        num_workers,
        seed,
        compile,
        precision,
        check_every,
        labelled_per_batch,
    )
    wanted = getattr(model, "defaults", {})
    objective = elbo or default_objective(model)
    if isinstance(objective, str):
        asked = {name: wanted[name] for name in CONTROLS if name in wanted}
        objective = controlled(make_elbo(objective), num_data=len(data.train.x), **asked)
    check_batches(model, data, objective, options)
    if beta is None:
        beta = wanted.get("beta", 1.0) if getattr(objective, "takes_beta", True) else 1.0
    betas = Betas(beta, data.train.x.device)
    with own_randomness(parallel.stream_seed(seed)), pyro.get_param_store().scope():
        with parallel.shared_errors():
            chosen = compiling_of(model, data, objective, options, resume)[0]
            options = dataclasses.replace(options, compile=chosen)
            training = Training(model, data, objective, betas, options, interrupt)
            _warn_if_unfinished(betas.steps, epochs * training.steps_per_epoch)
            if resume is not None:
                training.load_state_dict(resume)
        with training.shared(), _something_to_sum():
            _loop(training, callbacks, progress)
    if training.best is not None:
        model.load_state_dict(training.best)
    model.eval()
    return training.history


@contextlib.contextmanager
def _something_to_sum() -> Iterator[None]:
    """Inside, ``enum`` of a model with nothing to sum over is refused; Pyro warns of it and takes the sampled ELBO."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DRAWN_INSTEAD)
        warnings.filterwarnings("error", message="TraceEnum_ELBO found no sample sites")
        try:
            yield
        except UserWarning as warning:
            if "found no sample sites" not in str(warning):
                raise
            raise ValueError(
                "elbo enum: expected a model with a discrete site to sum over, marked infer={'enumerate': 'parallel'}, got "
                "one without; use elbo='trace' or 'mean-field'."
            ) from None


def _loop(training: Training, callbacks: Iterable[Callback], progress: bool) -> None:
    total = training.options.epochs * training.steps_per_epoch
    if progress and not training.history.rows:
        print(header(training.model))
    with tqdm(total=total, initial=training.step, disable=None if progress else True, unit="step", leave=False) as bar:

        def advance(mean: Callable[[], float]) -> None:
            if bar.update():  # true when the bar was drawn: no more often than the eye can see
                bar.set_postfix_str(so_far(training.model, mean()), refresh=False)

        while len(training.history) < training.options.epochs and training.stop_reason is None:
            row = training.run_epoch(advance)
            if row is not None and progress:
                bar.clear()
                print(line(row, training.options.epochs), flush=True)
            with parallel.shared_errors():
                for callback in callbacks:
                    callback(training)
            training.stop_reason = parallel.first_given(training.stop_reason)
            if training.interrupted():
                break
    history, whole = training.history, len(training.history) >= training.options.epochs
    history.stopped_by = training.stop_reason or ("epochs" if whole else "interrupted")
    history.steps = training.step
    history.compiled = training.svi.compiled


def compiling_of(
    model: Any, data: Data, objective: Any, options: FitOptions, resume: dict[str, Any] | None = None
) -> tuple[bool, str]:
    """Whether the steps of a run are to be compiled, and in words why; see :func:`pyro_vae.system.compiler.choose`."""
    asked, device = options.compile, data.train.x.device
    if asked is None and resume is not None:
        if not resume.get("compiled"):
            return False, "steps not compiled, as before"
        reason = compiler.obstacle()
        return reason is None, "steps compiled, as before" if reason is None else f"steps not compiled: {reason}"
    steps = options.epochs * math.ceil(epoch_order(model, data, options).total / options.batch_size)
    return compiler.choose(asked, steps, _flops(model, options.batch_size, objective), device)


def _flops(model: Any, batch_size: int, objective: Any) -> float:
    """Floating-point operations of a step, roughly: every parameter meets every draw and datum, forward and twice backward."""
    parameters = sum(p.numel() for p in model.parameters())
    draws = getattr(objective, "num_draws", objective.num_particles)
    return 6.0 * parameters * batch_size * draws


def _warn_if_unfinished(needed: int, steps: int) -> None:
    if needed > steps:
        warnings.warn(
            f"the schedule of beta takes {needed:,} steps but training only {steps:,}, so that its end is never reached; "
            "train longer or shorten it.",
            stacklevel=3,
        )
