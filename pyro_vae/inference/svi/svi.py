"""``SVI``: Pyro's SVI with a fused optimizer, gradient clipping and compiled steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.svi.compiled import CapturedSteps, Entry
from pyro_vae.inference.svi.data_parallel import Exchange
from pyro_vae.inference.svi.non_finite import Generators, NonFiniteLossError, Pending, PendingSteps, nonfinite_site
from pyro_vae.inference.svi.optimizer import FusedOptim, as_pyro_optim
from pyro_vae.inference.svi.step import Evaluated, Evaluation, clear
from pyro_vae.system.randomness import device_state

T = TypeVar("T")
Loss = float | tuple[float, ...]


class SVI(pyro.infer.SVI):
    """Stochastic variational inference for any Pyro program, faster than ``pyro.infer.SVI``.

    ``pyro.optim.Adam``, ``AdamW`` or ``SGD`` with dict arguments become one fused torch optimizer over all parameters. Other
    optimizers stay one optimizer for each parameter, as in Pyro, with a warning. A parameter without a gradient in a step does
    not move (in Pyro, momentum would move the parameter).

    With ``compile``, one graph of tensors computes loss and gradients. The graph is captured at the first step with each
    shape of the arguments (docs/speed.md: what is captured, and what a captured step does not see). The noise equals that
    of an eager step. A program that cannot be captured runs eagerly, with a warning that gives the reason.

    Args:
        model: A Pyro model.
        guide: Its guide.
        optim: A ``pyro.optim`` optimizer, or ``functools.partial(torch.optim.Adam, lr=...)``.
        loss: A ``pyro.infer.ELBO`` (of this package or Pyro), or a function ``loss(model, guide, *args)``.
        loss_and_grads: As in ``pyro.infer.SVI``; only used if ``loss`` is a function.
        clip_norm: Largest Euclidean norm of the gradient of the loss **per datum** (of the summed loss if the program has no
            data plate). Larger gradients are scaled down to this norm. None: no clipping.
        compile: Capture and compile the training step.
        check_every: With ``compile``, compare loss and gradients with an eager step once in this number of steps; if they
            differ, warn and capture the step again. None: compare only when a graph is captured.
        precision: ``"float32"``, or ``"bf16"``: networks compute linear maps and convolutions in bfloat16; their
            results and everything else are float32.
        **kwargs: Further arguments of ``pyro.infer.SVI``.

    Attributes:
        fused: The fused optimizer, or None if ``optim`` cannot be fused.
        steps_taken: Number of training steps taken.
        exchange: Sums loss and gradients over several processes; None with one process.

    Raises:
        TypeError: If ``optim`` is neither a ``pyro.optim`` optimizer nor a ``functools.partial`` of a torch optimizer class.
        ValueError: If ``clip_norm`` or ``check_every`` is not positive, or ``precision`` is unknown.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: PyroOptim | Callable[..., torch.optim.Optimizer],
        loss: ELBO | Callable[..., Tensor],
        loss_and_grads: Callable[..., Loss] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        clip_norm: float | None = None,
        compile: bool = False,
        check_every: int | None = None,
        precision: str = "float32",
        **kwargs: object,
    ) -> None:
        source = as_pyro_optim(optim)
        super().__init__(model, guide, source, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        _check_numbers(clip_norm, check_every)
        self.objective: ELBO = loss
        self.clip_norm, self.check_every = clip_norm, check_every
        self.steps_taken, self._pending = 0, PendingSteps()
        self._across_batch = getattr(loss, "across_batch", False)
        self.exchange: Exchange | None = None
        self._evaluation, self.fused = Evaluation(loss, clip_norm, precision), _fused(source)
        self._broken: Tensor | None = None
        self._captured: CapturedSteps | None = None
        if compile:
            self._captured = CapturedSteps(self.evaluate_terms, loss, (self.model, self.guide), precision)
            if loss_and_grads is not None and self._captured.reason is None:
                self._captured.give_up_objective()

    def share(self, exchange: Exchange) -> None:
        """Take each later step together with the other processes of the job."""
        self.exchange = exchange
        self._evaluation.share(exchange)
        if self._captured is not None and self._across_batch:
            self._captured.give_up(
                "the loss depends on the mean rate of the batch, and several processes share the batch"
            )

    @property
    def compiled(self) -> bool:
        """True if steps are compiled, unless compilation has failed."""
        return self._captured is not None and self._captured.reason is None

    def step(self, *args: object, **kwargs: object) -> Loss:
        """Take one gradient step.

        Args:
            *args: Positional arguments of model and guide.
            **kwargs: Keyword arguments of model and guide.

        Returns:
            The loss summed over the batch, nats, as in ``pyro.infer.SVI.step``.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no step is taken.
        """
        terms = self._tensor_step(args, kwargs)
        if terms is None:
            return self._eager_step(args, kwargs, self.loss_and_grads)[0]
        self.synchronize()
        return terms.loss.item()

    def step_terms(self, *args: object, **kwargs: object) -> Terms:
        """Take one gradient step; return the detached :class:`Terms`.

        A compiled step does not wait for the device; :meth:`synchronize` later checks that the loss was finite.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no step is taken.
        """
        _check_terms(self.objective)
        terms = self._tensor_step(args, kwargs)
        return self._eager_step(args, kwargs, self._evaluation.backward)[1] if terms is None else terms

    def evaluate_terms(self, args: Args, kwargs: Kwargs) -> Evaluated:
        """Evaluate loss and gradients without taking a step."""
        return self._evaluation(self.model, self.guide, args, kwargs)

    def synchronize(self) -> None:
        """Wait for the compiled steps; check that their losses are finite.

        After a non-finite loss, no parameter changes. An eager repetition of that step finds the responsible site.

        Raises:
            NonFiniteLossError: If a loss was not finite, or, with clipping, if a gradient was not finite.
        """
        broken = self._pending.first_broken()
        if broken is None:
            return
        taken, step = broken
        self._broken = None
        self.steps_taken -= taken
        step.before.restore(step.loss.device)
        value = step.loss.item()
        if math.isfinite(value):
            raise NonFiniteLossError("a gradient that is not finite", self.steps_taken, None)
        raise NonFiniteLossError(value, self.steps_taken, self._blamed(step))

    settle = synchronize  # the earlier name

    def _blamed(self, step: Pending) -> str | None:
        if self.exchange is None:
            return nonfinite_site(self.model, self.guide, step.args, step.kwargs)
        return self.exchange.blame(lambda: nonfinite_site(self.model, self.guide, step.args, step.kwargs))

    def _tensor_step(self, args: Args, kwargs: Kwargs) -> Terms | None:
        """Take a compiled step without waiting; return None without a compiled step."""
        if self.exchange is not None:
            return self._shared_step(args, kwargs, self.exchange)
        host = torch.get_rng_state()
        found = self._entry(args, kwargs)
        if found is None:
            return None
        entry, tensors = found
        before = Generators(host, device_state(entry.sound.device))
        return self._taken(entry(tensors, self._broken), args, kwargs, before, tensors)

    def _shared_step(self, args: Args, kwargs: Kwargs, exchange: Exchange) -> Terms:
        """Take a step together with the other processes of the job."""
        before = Generators.of(exchange.device)
        exchange.expecting = self._across_batch
        part = exchange.attempt(lambda: self._part(args, kwargs, before.host), NonFiniteLossError)
        return self._taken(self._evaluation.exchanged(part, exchange, self._broken), args, kwargs, before, [])

    def _part(self, args: Args, kwargs: Kwargs, random_state: Tensor) -> Evaluated:
        """Evaluate loss and gradients of this process's rows."""
        if (found := self._entry(args, kwargs)) is not None:
            return found[0](found[1])
        return self._evaluated(self._evaluation.tensors, args, kwargs, random_state)

    def _taken(self, step: Evaluated, args: Args, kwargs: Kwargs, before: Generators, tensors: list[Tensor]) -> Terms:
        """Take the step for an evaluated gradient, without waiting for the loss."""
        self._pending.add(Pending(args, kwargs, before, step.broken, step.terms.loss), tensors)
        self._take(step)
        if self._pending.many if self.exchange is None else self.exchange.due:  # all ranks wait at one step
            self.synchronize()
        return step.terms

    def _entry(self, args: Args, kwargs: Kwargs) -> tuple[Entry, list[Tensor]] | None:
        """Return the compiled step and its tensors; None without a compiled step."""
        # Only an eager step sees handlers around the step, gradients left by the caller and ``no_grad``.
        if self._captured is None or self._captured.reason is not None or _PYRO_STACK or not torch.is_grad_enabled():
            return None
        try:
            if self.check_every is not None and self.steps_taken > 0 and self.steps_taken % self.check_every == 0:
                found = self._captured.compared(args, kwargs, self.steps_taken)
            else:
                found = self._captured.entry(args, kwargs)
        except (ValueError, NonFiniteLossError):
            return None  # the eager step raises the error
        return None if found is None or any(p.grad is not None for p in found[0].params) else found

    def _take(self, evaluated: Evaluated) -> None:
        """Step the optimizer; the device skips this after a non-finite loss."""
        self.steps_taken += 1
        if self.fused is not None:
            self._broken = self.fused.found_inf = evaluated.broken
        else:
            self.synchronize()
        for p, grad in zip(evaluated.params, evaluated.grads, strict=True):
            p.grad = grad
        (self.fused or self.optim)(evaluated.params)
        clear(evaluated.params)

    def check_finite(self, *args: object, **kwargs: object) -> None:
        """Check that one evaluation of the loss is finite; change no state.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite.
        """
        random_state = torch.get_rng_state()
        with unaltered(Watch(self.model, self.guide), self.objective), poutine.block():
            self._refuse_non_finite(self.evaluate_loss(*args, **kwargs), args, kwargs, random_state)

    def _eager_step(self, args: Args, kwargs: Kwargs, evaluate: Callable[..., T]) -> tuple[Loss, T]:
        """Take an eager step; return the loss and the result of ``evaluate``."""
        random_state = torch.get_rng_state()
        with self._evaluation.recording() as (used, seen):
            evaluated = self._evaluated(evaluate, args, kwargs, random_state)
        params, value = list(used.values()), _numbers(evaluated)
        try:
            self._refuse_non_finite(value, args, kwargs, random_state)
        except NonFiniteLossError:
            clear(params)
            raise
        if self.clip_norm is not None:
            most = self.clip_norm * seen.num_data
            norm = torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], most)
            if not math.isfinite(norm.item()):
                clear(params)
                raise NonFiniteLossError(f"a gradient of norm {norm.item()}", self.steps_taken, None)
        (self.fused or self.optim)(params)
        clear(params)
        self.steps_taken += 1
        return value, evaluated

    def _evaluated(self, evaluate: Callable[..., T], args: Args, kwargs: Kwargs, random_state: Tensor) -> T:
        """Run ``evaluate``; on a validation error, name the step and the site."""
        try:
            return evaluate(self.model, self.guide, *args, **kwargs)
        except ValueError as error:
            torch.set_rng_state(random_state)
            site = nonfinite_site(self.model, self.guide, args, kwargs)
            if site is None:
                raise
            raise NonFiniteLossError(math.nan, self.steps_taken, site) from error

    def _refuse_non_finite(self, value: Loss, args: Args, kwargs: Kwargs, random_state: Tensor) -> None:
        if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            torch.set_rng_state(random_state)
            raise NonFiniteLossError(value, self.steps_taken, nonfinite_site(self.model, self.guide, args, kwargs))


def _check_numbers(clip_norm: float | None, check_every: int | None) -> None:
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: expected a positive number, got {clip_norm}; use None for no clipping.")
    if check_every is not None and check_every < 1:
        raise ValueError(
            f"check_every: expected at least 1 step, got {check_every}; use None to compare only at capture."
        )


def _fused(source: PyroOptim) -> FusedOptim | None:
    if FusedOptim.accepts(source):
        return FusedOptim(source)
    warnings.warn(
        "SVI: this optimizer is not fused and keeps one torch optimizer for each parameter; for speed use "
        "pyro.optim.Adam, AdamW or SGD with dict arguments and no clip_args.",
        stacklevel=3,
    )
    return None


def _check_terms(objective: object) -> None:
    if not hasattr(objective, "terms"):
        raise TypeError(
            f"objective: expected an objective from pyro_vae.elbo, got {type(objective).__name__}, whose rate and distortion "
            "are not known; use pyro_vae.elbo('trace'), or call SVI.step in your own loop."
        )


def _numbers(evaluated: object) -> Loss:
    """Return the loss (or the losses) of an evaluation as numbers."""
    if isinstance(evaluated, Terms):
        return evaluated.loss.item()
    return type(evaluated)(map(_item, evaluated)) if isinstance(evaluated, tuple) else _item(evaluated)


def _item(loss: object) -> Any:
    return loss.item() if isinstance(loss, Tensor) else loss
