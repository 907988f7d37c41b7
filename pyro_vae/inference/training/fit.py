"""``fit``: train a model by SVI, with callbacks after each epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Unpack

import pyro
from pyro.infer import ELBO
from tqdm import tqdm

from pyro_vae import parallel
from pyro_vae.data import Data
from pyro_vae.inference.kl.betas import Betas, Weights
from pyro_vae.inference.kl.registry import FLAGS, controlled
from pyro_vae.inference.objectives.bound import DRAWN_INSTEAD
from pyro_vae.inference.objectives.registry import default_objective
from pyro_vae.inference.objectives.registry import elbo as make_elbo
from pyro_vae.inference.training.batching import check_batches, epoch_order
from pyro_vae.inference.training.checkpoint import State
from pyro_vae.inference.training.epoch_line import epoch_line, mean_text, table_header
from pyro_vae.inference.training.history import History
from pyro_vae.inference.training.options import FitKeywords, FitOptions, make_options, with_options
from pyro_vae.inference.training.training import Training, never
from pyro_vae.models.checks import TrainingData, as_data, check_inputs, check_model, warn_about_labels
from pyro_vae.models.protocol import PyroModel, has_bound
from pyro_vae.system import compiler
from pyro_vae.system.randomness import own_randomness

Callback = Callable[[Training], None]


def early_stopping(patience: int) -> Callback:
    """Return a callback that stops training when the validation ELBO stops rising.

    Args:
        patience: Training stops after this number of epochs without a new best epoch; at least 1.

    Raises:
        ValueError: If ``patience`` is below 1.
    """
    if patience < 1:
        raise ValueError(f"patience: expected at least 1 epoch, got {patience}; omit patience to train all epochs.")

    def check(training: Training) -> None:
        if training.data.validation is not None and len(training.history) - training.history.best_epoch >= patience:
            training.stop("patience")

    return check


@with_options
def fit(
    model: PyroModel,
    data: TrainingData,
    *,
    elbo: str | ELBO | None = None,
    beta: Weights | None = None,
    callbacks: Sequence[Callback] = (),
    resume: State | None = None,
    interrupt: Callable[[], bool] = never,
    progress: bool = True,
    **options: Unpack[FitKeywords],
) -> History:
    r"""Train a model and its guide by SVI.

    .. math:: \max E_q[\log p(x|z)] - \beta_t\, KL(q(z|x) \| p(z))

    :math:`\beta_t` is the KL weight at training step t. All random numbers come from ``seed``, so earlier code in the
    process does not affect the result. The caller's random generators and parameter store do not change. At the end,
    the model holds the parameters of the epoch with the highest validation ELBO, or of the last epoch if there are no
    validation data.

    Args:
        model: A ``torch.nn.Module`` with Pyro functions ``model`` and ``guide``, such as :class:`pyro_vae.VAE`;
            ``pyro_vae.models.protocol`` lists its optional parts.
        data: A :class:`pyro_vae.data.Data`; or only training data, shape ``(N, *data_shape)``; or a tuple of the inputs that
            the model takes.
        elbo: An objective from :func:`pyro_vae.elbo`, which is used unchanged, or the name of an objective. None: the
            model's default objective if it has one, else ``"trace"``. With a name or None, the KL controls in the
            model's ``defaults`` apply.
        beta: KL weight: a number; or a schedule of the training step, such as ``schedules.linear(0., 1., steps=1000)``;
            or a dict with a number or schedule for each named site, such as ``{"z1": 0.5}``. Sites not in the dict keep
            weight 1. None: the KL weight in the model's ``defaults`` if the objective takes a KL weight, else 1.
        callbacks: Called with the :class:`Training` after each epoch. If ``interrupt`` ends an epoch early, they are called
            once more; then ``training.progress`` is not None, and the history has no row for the epoch.
        resume: A state that :meth:`Training.state_dict` returned within or after an epoch. Training continues exactly
            from this state.
        interrupt: Function that is called after every training step and returns True to stop training. It must then
            return True at every later call.
        progress: Print a line for each epoch, and show a progress bar on a terminal.
        **options: The fields of :class:`pyro_vae.inference.FitOptions`; docs/training.md lists them. With ``resume``,
            ``compile=None`` compiles the steps if the run began with compiled steps.

    Returns:
        The history, with true bounds in nats per datum.

    Raises:
        TypeError: If ``model`` is not an ``nn.Module``, or an option is unknown or has the wrong type.
        ValueError: If a number is out of range; a name is unknown; the model lacks a part of the protocol, or takes inputs
            that the data lack; a batch is too small; ``enum`` finds no discrete site to sum over; ``resume`` does not fit
            the run; or ``compile`` is True on a machine that cannot compile.
        NonFiniteLossError: If the loss becomes NaN or infinite. The model keeps the parameters of that moment.
            Callbacks have saved no state later than the end of the last complete epoch.
    """
    chosen = make_options("fit", options, fit)
    check_model(model)
    data = as_data(model, data)
    if len(data.train.x) == 0:
        raise ValueError("data: expected at least one training datum, got none.")
    check_inputs(model, data)
    if resume is None:
        warn_about_labels(model, data)
    _check_beta(model, beta)
    objective = _objective(model, elbo, len(data.train.x))
    check_batches(model, data, objective, chosen)
    betas = Betas(_default_beta(model, objective) if beta is None else beta, data.train.x.device)
    with own_randomness(parallel.stream_seed(chosen.seed)), pyro.get_param_store().scope():
        with parallel.shared_errors():
            compiles = compiling_of(model, data, objective, chosen, resume)[0]
            chosen = dataclasses.replace(chosen, compile=compiles)
            training = Training(model, data, objective, betas, chosen, interrupt)
            _warn_if_unfinished(betas.steps, chosen.epochs * training.steps_per_epoch)
            if resume is not None:
                training.load_state_dict(resume)
        with training.shared(), _something_to_sum():
            _loop(training, callbacks, progress)
    if training.best is not None:
        model.load_state_dict(training.best)
    model.eval()
    return training.history


def _check_beta(model: PyroModel, beta: Weights | None) -> None:
    """Refuse a KL weight for a model without a KL."""
    if has_bound(model) or beta is None or Betas(beta).is_one:
        return
    got = "a dict of sites" if isinstance(beta, Mapping) else "a schedule" if callable(beta) else beta
    raise ValueError(f"beta: {type(model).__name__} has no KL to weight, but beta is {got}; remove beta.")


def _objective(model: PyroModel, elbo: str | ELBO | None, num_data: int) -> ELBO:
    """Make the objective for :func:`fit`.

    If ``elbo`` is a name or None, the KL controls in the model's ``defaults`` are applied.
    """
    objective = elbo or default_objective(model)
    if not isinstance(objective, str):
        return objective
    defaults = getattr(model, "defaults", {})
    controls = {name: defaults[name] for name in FLAGS if name in defaults}
    return controlled(make_elbo(objective), num_data=num_data, **controls)


def _default_beta(model: PyroModel, objective: ELBO) -> Weights:
    takes_beta = getattr(objective, "takes_beta", True)
    return getattr(model, "defaults", {}).get("beta", 1.0) if takes_beta else 1.0


@contextlib.contextmanager
def _something_to_sum() -> Iterator[None]:
    """Refuse ``enum`` for a model without a discrete site to sum over.

    Pyro itself only warns in this case, and uses the ELBO with sampled sites.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=DRAWN_INSTEAD)
        warnings.filterwarnings("error", message="TraceEnum_ELBO found no sample sites")
        try:
            yield
        except UserWarning as warning:
            if "found no sample sites" not in str(warning):
                raise
            raise ValueError(
                "elbo enum: the model has no discrete site to sum over; mark a site with infer={'enumerate': 'parallel'}, or "
                "use elbo='trace' or 'mean-field'."
            ) from None


def _loop(training: Training, callbacks: Iterable[Callback], progress: bool) -> None:
    total = training.options.epochs * training.steps_per_epoch
    if progress and not training.history.rows:
        print(table_header(training.model))
    with tqdm(total=total, initial=training.step, disable=None if progress else True, unit="step", leave=False) as bar:

        def advance(mean: Callable[[], float]) -> None:
            if bar.update():  # True if the bar was redrawn, a few times a second
                bar.set_postfix_str(mean_text(training.model, mean()), refresh=False)

        while len(training.history) < training.options.epochs and training.stop_reason is None:
            row = training.run_epoch(advance)
            if row is not None and progress:
                bar.clear()
                print(epoch_line(row, training.options.epochs), flush=True)
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
    model: PyroModel, data: Data, objective: ELBO, options: FitOptions, resume: State | None = None
) -> tuple[bool, str]:
    """Return True if steps should be compiled, and the reason as text.

    See :func:`pyro_vae.system.compiler.should_compile`.
    """
    asked, device = options.compile, data.train.x.device
    if asked is None and resume is not None:
        if not resume.get("compiled"):
            return False, "steps not compiled, as before"
        reason = compiler.obstacle()
        return reason is None, "steps compiled, as before" if reason is None else f"steps not compiled: {reason}"
    steps = options.epochs * math.ceil(epoch_order(model, data, options).total / options.batch_size)
    return compiler.should_compile(asked, steps, _flops(model, options.batch_size, objective), device)


def _flops(model: PyroModel, batch_size: int, objective: ELBO) -> float:
    """Estimate the floating-point operations of a training step.

    Each draw of each datum uses every parameter once in the forward pass and twice in the backward pass.
    """
    parameters = sum(p.numel() for p in model.parameters())
    draws = getattr(objective, "num_draws", objective.num_particles)
    return 6.0 * parameters * batch_size * draws


def _warn_if_unfinished(needed: int, steps: int) -> None:
    if needed > steps:
        warnings.warn(
            f"beta: the schedule takes {needed:,} steps, but training has only {steps:,}; train longer or shorten the "
            "schedule.",
            stacklevel=3,
        )
