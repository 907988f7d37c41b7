"""One training run: its state, its epochs, and everything that must be saved to go on exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.data import Batches, Data, Split, Stored
from pyro_vae.handlers import scale_kl_pair
from pyro_vae.inference.svi import SVI, FusedOptim
from pyro_vae.inference.weights import ProposalDraws
from pyro_vae.lookup import lookup
from pyro_vae.randomness import own_randomness
from pyro_vae.schedules import Constant, Schedule

Row = dict[str, float]

#: Optimizers by name: the ``pyro.optim`` class that becomes one fused torch optimizer.
OPTIMIZERS = {"adam": pyro.optim.Adam, "adamw": pyro.optim.AdamW, "sgd": pyro.optim.SGD}

#: Learning-rate schedules by name: share of training done, in [0, 1), to the factor on ``lr``.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** (int(done >= 0.5) + int(done >= 0.75)),
}

EVALUATION_ROWS = 1000


@dataclass
class History:
    """What training was like, a row an epoch; every bound is the true one (beta = 1), nats per datum.

    Attributes:
        rows: A dict an epoch, see ``docs/run-directory.md`` for the columns.
        stopped_by: ``"epochs"``, or the reason that a callback gave.
    """

    rows: list[Row] = field(default_factory=list)
    stopped_by: str = "epochs"

    def __getitem__(self, column: str) -> list[float]:
        return [row[column] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, with the highest validation ELBO; the last where there is no validation."""
        if not self.rows or "validation_elbo" not in self.rows[-1]:
            return len(self.rows)
        values = [value if math.isfinite(value) else -math.inf for value in self["validation_elbo"]]
        return 1 + max(range(len(values)), key=values.__getitem__)


@dataclass(frozen=True)
class FitOptions:
    """The numbers and names of one training run, see :func:`pyro_vae.fit`.

    Raises:
        ValueError: If a number is out of its range or a name is unknown.
    """

    epochs: int = 100
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_schedule: str = "constant"
    clip_norm: float | None = None
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value}.")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value}.")
        lookup("optimizer", self.optimizer, OPTIMIZERS)
        lookup("learning-rate schedule", self.lr_schedule, LR_SCHEDULES)


class Training:
    """One training run: a model, its data, and everything that must be saved to go on exactly.

    Callbacks get this object after each epoch.

    Attributes:
        model: The model, in training, with ``model`` and ``guide``.
        data: Its data.
        options: Numbers and names.
        history: Rows so far.
        best: State of the model at the best epoch, or None without validation data.
    """

    def __init__(self, model: Any, data: Data, objective: Any, schedule: Schedule, options: FitOptions) -> None:
        self.model, self.data, self.schedule, self.options = model, data, schedule, options
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self.stop_reason: str | None = None
        device = data.train.x.device
        self.order = torch.Generator(device).manual_seed(options.seed)
        self.beta = torch.tensor(float(schedule(0)), device=device)
        pair = (model.model, model.guide)
        if not (isinstance(schedule, Constant) and schedule.value == 1.0):
            pair = scale_kl_pair(*pair, self.beta)
        optim = OPTIMIZERS[options.optimizer]({"lr": options.lr})
        self.svi = SVI(*pair, optim, objective, clip_norm=options.clip_norm)
        self.batches = Batches(data.train.x, options.batch_size, data.redraw, options.num_workers)
        self.steps_per_epoch = len(self.batches)

    def stop(self, reason: str) -> None:
        """Ask the loop to end after this epoch."""
        self.stop_reason = reason

    @property
    def step(self) -> int:
        """Optimization steps taken."""
        return self.svi.steps_taken

    def run_epoch(self, advance: Callable[[Callable[[], float]], None]) -> Row:
        """Train one epoch, then evaluate on the validation data.

        Args:
            advance: Called after every step with a function that gives the mean training ELBO of the epoch so far, nats
                per datum (calling it waits for the device).

        Returns:
            The row of this epoch.
        """
        started = time.perf_counter()
        self.model.train()
        dtype = torch.float32 if self.beta.device.type == "mps" else torch.float64  # MPS has no float64
        totals = torch.zeros(3, device=self.beta.device, dtype=dtype)  # loss, distortion, rate
        seen = 0

        def running_elbo() -> float:
            return -float(totals[1] + totals[2]) / seen

        with ExitStack() as unchecked:
            for x in self.batches.epoch(self.order):
                self._set_rates()
                # Pyro and torch validate the first step of a run; the others would take half as long again.
                if self.step == 1 or (self.step > 0 and seen == 0):
                    unchecked.enter_context(pyro.validation_enabled(False))
                totals += torch.stack(self.svi.step_terms(x))
                seen += len(x)
                advance(running_elbo)
        with pyro.validation_enabled(False):
            self.svi.check_finite(x)  # the last step may have been one too far: such an epoch must not be saved
        if self.step == self.steps_per_epoch:
            self._check_parameters()
        loss, distortion, rate = (totals / seen).tolist()
        seconds = time.perf_counter() - started
        row = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "objective": -loss,
            "train_elbo": -distortion - rate,
            "train_rate": rate,
            "train_distortion": distortion,
            "beta": float(self.beta),
            "lr": self._lr(self.step - 1),
            "images_per_second": seen / seconds,
            "seconds": seconds,
        }
        if self.data.validation is not None:
            row |= self._validate(self.data.validation)
        self.history.rows.append(row)
        if self.data.validation is not None and self.history.best_epoch == len(self.history):
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        return row

    def _lr(self, step: int) -> float:
        share = step / (self.options.epochs * self.steps_per_epoch)
        return self.options.lr * LR_SCHEDULES[self.options.lr_schedule](share)

    def _set_rates(self) -> None:
        beta = float(self.schedule(self.step))
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(
                f"beta: expected finite numbers of at least 0 from its schedule, got {beta} at step {self.step}."
            )
        self.beta.fill_(beta)
        if self.options.lr_schedule != "constant":
            self._optimizer.set_lr(self._lr(self.step))

    @property
    def _optimizer(self) -> FusedOptim:
        assert isinstance(self.svi._stepper, FusedOptim)  # every entry of OPTIMIZERS is fusible
        return self.svi._stepper

    def _check_parameters(self) -> None:
        """Refuse trained tensors that are not the model's: they would be lost with the store's scope."""
        own = {id(p) for p in self.model.parameters()}
        store = pyro.get_param_store()
        for p in self._optimizer.source.optim_objs:
            if id(p) not in own:
                raise ValueError(
                    f"parameter {store.param_name(p)!r}: expected a parameter of the model's modules, got one of "
                    "pyro.param alone, which fit could not save; make it an nn.Parameter or a PyroParam of the model."
                )

    def _validate(self, split: Split) -> Row:
        likelihood, ratio = evaluate_terms(self.model, split.x, self.options.seed)
        elbo = likelihood + ratio
        return {
            "validation_elbo": float(elbo.mean()),
            "validation_elbo_std_error": float(elbo.std() / math.sqrt(len(elbo))) if len(elbo) > 1 else math.nan,
            "validation_rate": -float(ratio.mean()),
            "validation_distortion": -float(likelihood.mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: plain containers, numbers and tensors."""
        singles = self._optimizer.source.optim_objs
        state = {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": {k: singles[p].state_dict() for k, p in self.model.named_parameters() if p in singles},
            "step": self.step,
            "rows": self.history.rows,
            "stop_reason": self.stop_reason,
            "random": torch.get_rng_state(),
            "order": self.order.get_state(),
        }
        if self.beta.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.beta.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.best = state["best"]
        for name, p in self.model.named_parameters():
            if name in state["optimizer"]:
                self._optimizer.add(p, state["optimizer"][name])
        self.svi.steps_taken = state["step"]
        self.history.rows = list(state["rows"])
        self.stop_reason = state["stop_reason"]
        torch.set_rng_state(state["random"].cpu())
        self.order.set_state(state["order"].cpu())
        if self.beta.device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.beta.device)


@torch.no_grad()
def evaluate_terms(model: Any, x: Tensor | Stored, seed: int) -> tuple[Tensor, Tensor]:
    """One draw of log p(x|z) and of log p(z) - log q(z|x) for each datum, the same draw at every call.

    Args:
        model: An object with Pyro functions ``model`` and ``guide``.
        x: Data, shape ``(N, *data_shape)``.
        seed: Seed of the draws; the caller's generators are left as they were.

    Returns:
        Two tensors of shape ``(N,)``, nats, float64, on the CPU.
    """
    was_training = model.training
    model.eval()
    parts = []
    try:
        with own_randomness(seed), pyro.validation_enabled(False):
            for batch in x.split(EVALUATION_ROWS):
                first = ProposalDraws(model.model, model.guide, (batch,), {}).first
                parts.append([part[0].cpu().double() for part in first])
    finally:
        model.train(was_training)
    likelihood, ratio = (torch.cat(part) for part in zip(*parts, strict=True))
    return likelihood, ratio
