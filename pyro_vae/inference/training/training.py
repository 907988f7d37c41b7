"""``Training``: one training run, its epochs and its state."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.data import Batches, Data
from pyro_vae.errors import first_line
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.svi.data_parallel import Exchange
from pyro_vae.inference.svi.optimizer import OPTIMIZERS, FusedOptim
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.inference.training.batching import epoch_order
from pyro_vae.inference.training.checkpoint import (
    State,
    check_epoch,
    check_state,
    optimizer_state,
    random_state,
    restore_optimizer,
    restore_random_state,
)
from pyro_vae.inference.training.history import EpochProgress, History, Row
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.inference.training.unregistered import check_saved, check_trained
from pyro_vae.inference.training.validation import after_epoch, validate
from pyro_vae.models.protocol import PyroModel, has_bound, takes, training_inputs
from pyro_vae.parallel.shared_batch import WholeBatch

#: Function called after every training step. Its argument is a function that returns the mean training ELBO of the epoch
#: so far, nats per datum. A call of that function waits for the device.
Advance = Callable[[Callable[[], float]], None]


class Paused(Exception):
    """The exception raised within an epoch when training must stop."""


def never() -> bool:
    """Return False: the ``interrupt`` that never stops training."""
    return False


class Training:
    """One training run, with the state needed to continue exactly.

    Callbacks receive this object after each epoch, and when training is interrupted within an epoch.

    Args:
        model: The model.
        data: The model's data.
        objective: The objective.
        betas: The KL weights.
        options: Options of the training.
        interrupt: Function called after every training step; returns True if training must stop.

    Attributes:
        history: History of the finished epochs.
        best: State of the model after the best epoch; None without validation data.
        progress: Progress within an interrupted epoch; None between epochs.
        stop_reason: The reason that a callback gave to stop training after this epoch, or None.
        svi: The :class:`pyro_vae.SVI` that takes the training steps.
        steps_per_epoch: Number of batches in an epoch.
    """

    def __init__(
        self,
        model: PyroModel,
        data: Data,
        objective: ELBO,
        betas: Betas,
        options: FitOptions,
        interrupt: Callable[[], bool] = never,
    ) -> None:
        self.model, self.data, self.betas, self.options = model, data, betas, options
        self.interrupt = interrupt
        self.history = History()
        self.progress: EpochProgress | None = None
        self.best: dict[str, Tensor] | None = None
        self.stop_reason: str | None = None
        self._warned = False
        self.device = data.train.x.device
        self.order = torch.Generator(self.device).manual_seed(options.seed)
        self.svi = SVI(
            *betas.apply(model.model, model.guide),
            OPTIMIZERS[options.optimizer]({"lr": options.lr}),
            objective,
            clip_norm=options.clip_norm,
            compile=bool(options.compile),
            check_every=options.check_every,
            precision=options.precision,
        )
        self.batches = Batches(
            training_inputs(model, data.train),
            options.batch_size,
            data.redraw,
            options.num_workers,
            world=parallel.world(),
            order=epoch_order(model, data, options),
        )
        self.steps_per_epoch = len(self.batches)
        self.whole: WholeBatch | None = None

    def stop(self, reason: str) -> None:
        """Stop training after this epoch, for the given reason."""
        self.stop_reason = reason

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside the ``with`` block, share each training step with all processes."""
        if parallel.world().size == 1:
            yield
            return
        exchange = Exchange(self.model, self.interrupt)
        self.svi.share(exchange)
        self.whole = WholeBatch(self.device, exchange.mean)
        with self.whole.active():
            yield

    def interrupted(self) -> bool:
        """Return True if a process must stop; all processes must call this."""
        return any(parallel.all_gather(self.interrupt()))

    @property
    def step(self) -> int:
        """Number of training steps taken."""
        return self.svi.steps_taken

    @property
    def optimizer(self) -> FusedOptim:
        """The fused optimizer."""
        assert self.svi.fused is not None  # every entry of OPTIMIZERS is fusible
        return self.svi.fused

    def run_epoch(self, advance: Advance) -> Row | None:
        """Train for an epoch, or finish an interrupted one; then validate.

        Args:
            advance: Function called after every training step; see ``Advance``.

        Returns:
            The history's row for this epoch, or None if ``interrupt`` stopped training within the epoch.
        """
        self.model.train()
        if self.progress is None:
            self.progress = self.begin_epoch()
        try:
            self._finish_epoch(self.progress, advance)
            row = self._row(self.progress)
            with parallel.shared_errors():
                after_epoch(self.model, self.data, self.options.seed)
            if self.data.validation is not None:
                with parallel.shared_errors():
                    weighting = self.svi.objective, self.betas.final
                    row |= validate(self.model, self.data.validation, *weighting, self.options.seed, self._poll)
        except Paused:
            return None
        self.progress = None
        if not self._warned:
            self._warned = _warn_about_epoch(self, row)
        self.history.rows.append(row)
        if self.data.validation is not None and self.history.best_epoch == len(self.history):
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        return row

    def begin_epoch(self) -> EpochProgress:
        """Draw the data order of a new epoch; return its progress."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        start = self.order.get_state()
        return EpochProgress(start, self.batches.order(self.order), torch.zeros(3, device=self.device, dtype=dtype))

    def _finish_epoch(self, progress: EpochProgress, advance: Advance) -> None:
        """Take an epoch's remaining training steps; check that the loss stays finite."""
        started, batch, validated = time.perf_counter() - progress.seconds, None, True
        checked = bool(self.history.rows)
        with ExitStack() as unchecked:
            for batch in self.batches.rest(progress.order, progress.batches, self.order):
                self._set_rates()
                size = min(self.options.batch_size, self.batches.order.total - progress.seen)
                if self.svi.exchange is not None:
                    self._begin_shared_step(self.svi.exchange, progress, size)
                # Pyro and torch validate the first step of a run; the others would take half as long again.
                if validated and self.step > 0:
                    unchecked.enter_context(pyro.validation_enabled(False))
                    validated = False
                progress.totals += torch.stack(self.svi.step_terms(*batch))
                if not checked:
                    check_trained(self.model, self.svi, self.optimizer, batch)
                    checked = True
                progress.seen += size
                progress.batches += 1
                advance(lambda: self._mean_elbo(progress))
                if self.interrupt() if self.svi.exchange is None else self.svi.exchange.stop:
                    break
        self.svi.synchronize()
        if batch is not None:
            with parallel.shared_errors(), pyro.validation_enabled(False):
                self.svi.check_finite(*batch)  # the last step may have gone too far: do not save its result
        if self.svi.exchange is not None:
            self.svi.exchange.compare(len(self.history) + 1)
        if not self.history.rows:
            check_saved(self.model, self.optimizer)
        progress.seconds = time.perf_counter() - started
        if progress.batches < self.steps_per_epoch:
            raise Paused

    def _begin_shared_step(self, exchange: Exchange, progress: EpochProgress, size: int) -> None:
        exchange.begin(size)
        if self.whole is not None and "y" in takes(self.model):
            rows = progress.order[progress.seen : progress.seen + size]
            self.whole.set_labels(self.batches.inputs.parts[1][rows.to(self.device)])

    def _mean_elbo(self, progress: EpochProgress) -> float:
        """Wait for the device; return the current epoch's mean training ELBO."""
        if self.svi.exchange is None:  # several processes synchronize at the same step
            self.svi.synchronize()
        return progress.elbo()

    def _row(self, progress: EpochProgress) -> Row:
        return {
            "epoch": len(self.history) + 1,
            "step": self.step,
            **progress.means(has_bound(self.model)),
            **self.betas.columns,
            **getattr(self.svi.objective, "columns", {}),
            "lr": self.options.lr_at(self.step - 1, self.steps_per_epoch),
            "images_per_second": progress.seen / progress.seconds,
            "seconds": progress.seconds,
        }

    def _set_rates(self) -> None:
        self.betas.set(self.step)
        if self.options.lr_schedule != "constant":
            self.optimizer.set_lr(self.options.lr_at(self.step, self.steps_per_epoch))

    def _poll(self) -> None:
        if self.interrupted():
            raise Paused

    def state_dict(self) -> State:
        """Return the state for exact continuation, in plain containers and tensors."""
        objective = self.svi.objective
        return {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": optimizer_state(self.model, self.optimizer),
            "objective": objective.state_dict() if hasattr(objective, "state_dict") else None,
            "step": self.step,
            "rows": self.history.rows,
            "stop_reason": self.stop_reason,
            "compiled": self.svi.compiled,
            "device": self.device.type,
            **random_state(self.device),
            "order": self.order.get_state(),
            "epoch": None if self.progress is None else self.progress.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by :meth:`state_dict`.

        Raises:
            ValueError: If ``state`` is incomplete, or belongs to another model or other data.
        """
        check_state(state, self.model, "resume")
        try:
            self._restore(state)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"resume: expected a training state that can be restored, got an error ({first_line(error)}); train the model "
                "again."
            ) from error

    def _restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.best, self.stop_reason = state["best"], state["stop_reason"]
        restore_optimizer(self.model, self.optimizer, state["optimizer"])
        if state["objective"] is not None:
            self.svi.objective.load_state_dict(state["objective"])
        self.svi.steps_taken = state["step"]
        if self.step > 0:
            self.betas.set(self.step - 1)
        self.history.rows = list(state["rows"])
        same = restore_random_state(state, self.device, self.order, self.options.seed + self.step)
        if state["epoch"] is not None:
            check_epoch(state["epoch"], self.options.batch_size, self.batches.order.total)
            if same:
                self.order.set_state(state["epoch"]["start"].cpu())
            self.progress = self.begin_epoch()
            self.progress.load_state_dict(state["epoch"])
        if same:
            self.order.set_state(state["order"].cpu())


def _warn_about_epoch(training: Training, row: Row) -> bool:
    """Warn if the objective finds the epoch's means implausible.

    Returns:
        True if there was a warning.
    """
    warning_for = getattr(training.svi.objective, "epoch_warning", None)
    if warning_for is None or training.betas.final not in (None, 1.0):
        return False
    elbo = -row["train_distortion"] - row["train_rate"]
    text = warning_for(row["objective"], elbo, training.options.batch_size)
    if text is not None:
        warnings.warn(text, stacklevel=4)
    return text is not None
