"""One training run: its state, its epochs, and everything that must be saved to go on exactly."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.data import Batches, Data, Split
from pyro_vae.errors import first_line
from pyro_vae.inference.kl.betas import Betas
from pyro_vae.inference.svi.data_parallel import Exchange
from pyro_vae.inference.svi.optimizer import FusedOptim
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.inference.training.batching import epoch_order
from pyro_vae.inference.training.checkpoint import check_state, restore, state_of
from pyro_vae.inference.training.history import History, Progress, Row
from pyro_vae.inference.training.options import LR_SCHEDULES, OPTIMIZERS, FitOptions
from pyro_vae.inference.training.unregistered import check_reached
from pyro_vae.inference.training.validation import after_epoch, evaluate_terms
from pyro_vae.models.checks import unregistered_message, unsaved_message
from pyro_vae.models.protocol import evaluation_inputs, has_bound, takes, training_inputs
from pyro_vae.parallel.shared_batch import WholeBatch


class Paused(Exception):
    """Training was asked to stop within an epoch; what has been done of it is kept."""


def never() -> bool:
    """No one asks to stop."""
    return False


class Training:
    """One training run: a model, its data, and everything that must be saved to go on exactly.

    Callbacks get this object after each epoch, and where training is interrupted within one.

    Attributes:
        model: The model, in training, with ``model`` and ``guide``.
        data: Its data.
        options: Numbers and names.
        history: Rows so far.
        best: State of the model at the best epoch, or None without validation data.
        progress: What has been done of an epoch that was interrupted, or None between epochs.
    """

    def __init__(
        self,
        model: Any,
        data: Data,
        objective: Any,
        betas: Betas,
        options: FitOptions,
        interrupt: Callable[[], bool] = never,
    ) -> None:
        self.model, self.data, self.betas, self.options = model, data, betas, options
        self.interrupt = interrupt
        self.history = History()
        self.progress: Progress | None = None
        self.best: dict[str, Tensor] | None = None
        self.stop_reason: str | None = None
        self._warned = False
        self.device = data.train.x.device
        self.order = torch.Generator(self.device).manual_seed(options.seed)
        pair = betas.apply(model.model, model.guide)
        optim = OPTIMIZERS[options.optimizer]({"lr": options.lr})
        self.svi = SVI(
            *pair,
            optim,
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
        """Ask the loop to end after this epoch."""
        self.stop_reason = reason

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside, steps are those of all processes of the job, if there are several."""
        if parallel.world().size == 1:
            yield
            return
        exchange = Exchange(self.model, self.interrupt)
        self.svi.share(exchange)
        self.whole = WholeBatch(self.device, exchange.mean)
        with self.whole.active():
            yield

    def interrupted(self) -> bool:
        """Whether this process or another of the job was asked to stop; all must ask at the same time."""
        return any(parallel.all_gather(self.interrupt()))

    @property
    def step(self) -> int:
        """Optimization steps taken."""
        return self.svi.steps_taken

    def run_epoch(self, advance: Callable[[Callable[[], float]], None]) -> Row | None:
        """Train one epoch, or what is left of it, then evaluate on the validation data.

        Args:
            advance: Called after every step with a function that gives the mean training ELBO of the epoch so far, nats
                per datum (calling it waits for the device).

        Returns:
            The row of this epoch, or None if ``interrupt`` asked to stop within it.
        """
        self.model.train()
        if self.progress is None:
            self.progress = self.begin()
        try:
            self._finish(self.progress, advance)
            row = self._row(self.progress)
            with parallel.shared_errors():
                after_epoch(self.model, self.data, self.options.seed)
            if self.data.validation is not None:
                with parallel.shared_errors():
                    row |= self._validate(self.data.validation)
        except Paused:
            return None
        self.progress = None
        self._judge(row)
        self.history.rows.append(row)
        if self.data.validation is not None and self.history.best_epoch == len(self.history):
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        return row

    def _judge(self, row: Row) -> None:
        """Warn, once, where the objective says that an epoch went otherwise than it means to."""
        judged = getattr(self.svi.objective, "judged", None)
        if judged is None or self._warned or self.betas.final not in (None, 1.0):
            return
        said = judged(row["objective"], -row["train_distortion"] - row["train_rate"], self.options.batch_size)
        if said is not None:
            self._warned = True
            warnings.warn(said, stacklevel=4)

    def begin(self) -> Progress:
        """An epoch of which nothing has been done: its order is drawn."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        start = self.order.get_state()
        return Progress(start, self.batches.order(self.order), torch.zeros(3, device=self.device, dtype=dtype))

    def _finish(self, progress: Progress, advance: Callable[[Callable[[], float]], None]) -> None:
        """Take the steps that are left of an epoch; what they leave is looked at before anyone saves it."""
        started, batch, validated = time.perf_counter() - progress.seconds, None, True
        checked = bool(self.history.rows)
        with ExitStack() as unchecked:
            for batch in self.batches.rest(progress.order, progress.batches, self.order):
                self._set_rates()
                size = min(self.options.batch_size, self.batches.order.total - progress.seen)
                if self.svi.exchange is not None:
                    self.svi.exchange.begin(size)
                    if self.whole is not None and "y" in takes(self.model):
                        rows = progress.order[progress.seen : progress.seen + size]
                        self.whole.set_labels(self.batches.columns.parts[1][rows.to(self.device)])
                # Pyro and torch validate the first step of a run; the others would take half as long again.
                if validated and self.step > 0:
                    unchecked.enter_context(pyro.validation_enabled(False))
                    validated = False
                progress.totals += torch.stack(self.svi.step_terms(*batch))
                if not checked:
                    self._check_trained(batch)
                    checked = True
                progress.seen += size
                progress.batches += 1
                advance(lambda: self._so_far(progress))
                if self.interrupt() if self.svi.exchange is None else self.svi.exchange.stop:
                    break
        self.svi.synchronize()
        if batch is not None:
            with parallel.shared_errors(), pyro.validation_enabled(False):
                self.svi.check_finite(*batch)  # the last step may have been one too far: what it left must not be saved
        if self.svi.exchange is not None:
            self.svi.exchange.compare(len(self.history) + 1)
        if not self.history.rows:
            self._check_parameters()
        progress.seconds = time.perf_counter() - started
        if progress.batches < self.steps_per_epoch:
            raise Paused

    def _so_far(self, progress: Progress) -> float:
        """What a log line says of an epoch under way: the first wait for the device since the one before."""
        if self.svi.exchange is None:  # else all processes synchronize at the same step
            self.svi.synchronize()
        return progress.elbo()

    def _row(self, progress: Progress) -> Row:
        loss, distortion, rate = (progress.totals / progress.seen).tolist()
        return {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "objective": -loss,
            **({"train_elbo": -distortion - rate} if has_bound(self.model) else {}),
            "train_rate": rate,
            "train_distortion": distortion,
            **self.betas.columns,
            **getattr(self.svi.objective, "columns", {}),
            "lr": self._lr(self.step - 1),
            "images_per_second": progress.seen / progress.seconds,
            "seconds": progress.seconds,
        }

    def _lr(self, step: int) -> float:
        share = step / (self.options.epochs * self.steps_per_epoch)
        return self.options.lr * LR_SCHEDULES[self.options.lr_schedule](share)

    def _set_rates(self) -> None:
        self.betas.set(self.step)
        if self.options.lr_schedule != "constant":
            self.optimizer.set_lr(self._lr(self.step))

    @property
    def optimizer(self) -> FusedOptim:
        """The optimizer of the steps."""
        assert self.svi.fused is not None  # every entry of OPTIMIZERS is fusible
        return self.svi.fused

    def _check_parameters(self) -> None:
        """Refuse trained tensors that are not the model's: they would be lost with the store's scope."""
        own = {id(p) for p in self.model.parameters()}
        store = pyro.get_param_store()
        for p in self.optimizer.source.optim_objs:
            if id(p) not in own:
                raise ValueError(unsaved_message(store.param_name(p)))

    def _check_trained(self, batch: tuple[Tensor, ...]) -> None:
        """After a step, refuse a model none of whose parameters took part in it, or not all that its loss depends on."""
        own, known = [p for p in self.model.parameters() if p.requires_grad], self.optimizer.source.optim_objs
        name, svi = type(self.model).__name__, self.svi
        if own and not known:
            raise ValueError(unregistered_message(name))
        check_reached(name, self.model, svi.objective, (svi.model, svi.guide), batch, {id(p): p for p in known})

    def _poll(self) -> None:
        if self.interrupted():
            raise Paused

    def _validate(self, split: Split) -> Row:
        likelihood, ratio = evaluate_terms(
            self.model, evaluation_inputs(self.model, split), self.options.seed, self._poll
        )
        value = likelihood + ratio
        name = "validation_elbo" if has_bound(self.model) else "validation_objective"
        return {
            name: float(value.mean()),
            f"{name}_std_error": float(value.std() / math.sqrt(len(value))) if len(value) > 1 else math.nan,
            "validation_rate": -float(ratio.mean()),
            "validation_distortion": -float(likelihood.mean()),
            **self._selection(-float(likelihood.mean()), -float(ratio.mean())),
        }

    def _selection(self, distortion: float, rate: float) -> Row:
        """What the best epoch is chosen by, where that is not the ELBO: the objective under its final weights."""
        objective = self.svi.objective
        beta = 1.0 if self.betas.final is None else self.betas.final
        if hasattr(objective, "selection"):
            return {"validation_objective": objective.selection(distortion, rate, beta)}
        return {} if beta == 1 else {"validation_objective": -distortion - beta * rate}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: plain containers, numbers and tensors."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is not whole, or belongs to another model or other data.
        """
        check_state(state, self.model, "resume")
        try:
            restore(self, state)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"resume: expected a whole training state, got one that cannot be used ({first_line(error)}); train it again."
            ) from error
