"""``pyro.infer.SVI`` with one fused optimizer, global gradient clipping, and a stop at the first non-finite loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.program.parameters import Used, UsedData
from pyro_vae.inference.program.traces import Args, Kwargs
from pyro_vae.inference.svi.compiled import CapturedSteps, Entry, Evaluated
from pyro_vae.inference.svi.data_parallel import Exchange
from pyro_vae.inference.svi.non_finite import Noise, NonFiniteLossError, Pending, PendingSteps, nonfinite_site
from pyro_vae.inference.svi.optimizer import FusedOptim, as_pyro_optim
from pyro_vae.inference.svi.precision import PRECISIONS
from pyro_vae.lookup import lookup
from pyro_vae.registration import Recorder
from pyro_vae.system.randomness import device_state


class SVI(pyro.infer.SVI):
    """Stochastic variational inference: ``pyro.infer.SVI``, faster, for any Pyro program.

    ``pyro.optim.Adam``, ``AdamW`` or ``SGD`` with dict arguments become one fused torch optimizer over all parameters;
    any other keeps Pyro's one optimizer for each parameter, with a warning. A parameter that has no gradient in a step stays
    where it is (in Pyro its momentum would move it on).

    With ``compile``, loss and gradients come from one graph of tensors, captured from the first step of each shape of
    the arguments and compiled (docs/speed.md says what is captured, and what a captured step does not see). The noise is
    the eager step's. A program that cannot be captured runs eagerly, with a warning that says why.

    Args:
        model: A Pyro model.
        guide: Its guide.
        optim: A ``pyro.optim`` optimizer, or ``functools.partial(torch.optim.Adam, lr=...)``.
        loss: A ``pyro.infer.ELBO`` (ours or Pyro's), or a function ``loss(model, guide, *args)``.
        loss_and_grads: As in Pyro, for a loss that is a function.
        clip_norm: Largest Euclidean norm of the whole gradient of the loss **per datum** (of the summed loss where the
            program has no data plate); larger gradients are scaled down to it. None: no clipping.
        compile: Capture and compile the step.
        check_every: With ``compile``, compare loss and gradients with an eager step's every so many steps; where they
            differ, warn and capture anew. None: only when a graph is made.
        precision: ``"float32"``, or ``"bf16"``: linear maps and convolutions of networks in bfloat16, all else, and their
            results, in float32.
        **kwargs: What ``pyro.infer.SVI`` takes besides.

    Raises:
        TypeError: If ``optim`` is no such thing.
        ValueError: If ``clip_norm`` or ``check_every`` is not positive, or ``precision`` is unknown.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Any,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
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
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: expected a positive number, got {clip_norm}; leave it out for no clipping.")
        if check_every is not None and check_every < 1:
            raise ValueError(
                f"check_every: expected at least 1 step, got {check_every}; leave it out for no comparison."
            )
        self.objective = loss
        self.clip_norm, self.check_every, self.precision = clip_norm, check_every, precision
        self.steps_taken = 0
        self._modules = Recorder()
        self._used = Used if clip_norm is None else UsedData
        self._networks = lookup("precision", precision, PRECISIONS)
        self._stepper: Callable[[Iterable[Tensor]], None] = source
        if FusedOptim.accepts(source):
            self._stepper = FusedOptim(source)
        else:
            warnings.warn(
                "SVI: this optimizer is not fused and keeps one torch optimizer for each parameter; for speed use "
                "pyro.optim.Adam, AdamW or SGD with dict arguments and no clip_args.",
                stacklevel=2,
            )
        self._broken: Tensor | None = None
        self._pending = PendingSteps()
        self._captured = self._captured_steps(loss_and_grads) if compile else None
        self.exchange: Exchange | None = None

    def share(self, exchange: Exchange) -> None:
        """From now on a step is one of several processes', each with its share of the batch."""
        self.exchange, self._used = exchange, UsedData
        if self._captured is not None and self._across_batch:
            self._captured.give_up("its objective bends the mean rate of the batch, which lies on several processes")

    @property
    def _across_batch(self) -> bool:
        return getattr(self.objective, "across_batch", False)

    def _captured_steps(self, loss_and_grads: Any) -> CapturedSteps:
        steps = CapturedSteps(self._with_grads, self.objective, (self.model, self.guide), self.precision)
        if loss_and_grads is not None or (
            not hasattr(self.objective, "terms") and isinstance(self.objective, pyro.infer.ELBO)
        ):
            steps.give_up(
                f"expected an objective of pyro_vae.elbo or a function that gives the loss, got {type(self.objective).__name__}"
            )
        return steps

    @property
    def compiled(self) -> bool:
        """Whether steps are compiled, as far as known: asked for, and given up for no program so far."""
        return self._captured is not None and self._captured.reason is None

    def step(self, *args: object, **kwargs: object) -> Any:
        """One gradient step.

        Args:
            *args: What model and guide take.
            **kwargs: Likewise.

        Returns:
            The loss summed over the batch, nats, as ``pyro.infer.SVI.step`` does.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no step is taken.
        """
        terms = self._tensor_step(args, kwargs)
        if terms is None:
            return self._step(args, kwargs, self._loss_and_grads)[0]
        self.synchronize()
        return terms.loss.item()

    def step_terms(self, *args: object, **kwargs: object) -> Terms:
        """One gradient step, giving the detached :class:`Terms` of the package's own objectives.

        A compiled step does not wait for the device: whether its loss was finite is found out by :meth:`synchronize`.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; no step is taken.
        """
        self._check_terms()
        terms = self._tensor_step(args, kwargs)
        return self._step(args, kwargs, self._terms_and_grads)[1] if terms is None else terms

    def synchronize(self) -> None:
        """Wait for the compiled steps taken so far, and see whether their losses were finite.

        After one that was not, no parameter has moved; an eager replay of that step names the site.

        Raises:
            NonFiniteLossError: If one was not.
        """
        found = self._pending.first_broken()
        if found is None:
            return
        taken, step = found
        self._broken = None
        self.steps_taken -= taken
        step.noise.restore(step.loss.device)
        value = step.loss.item()
        if math.isfinite(value):
            raise NonFiniteLossError("a gradient that is not finite", self.steps_taken, None)
        raise NonFiniteLossError(value, self.steps_taken, self._blamed(step))

    def _blamed(self, step: Pending) -> str | None:
        if self.exchange is None:
            return nonfinite_site(self.model, self.guide, step.args, step.kwargs)
        return self.exchange.blame(lambda: nonfinite_site(self.model, self.guide, step.args, step.kwargs))

    def _tensor_step(self, args: Args, kwargs: Kwargs) -> Terms | None:
        """Take a step that leaves its loss on the device; None where it is an eager one of this process alone."""
        if self.exchange is not None:
            return self._shared_step(args, kwargs, self.exchange)
        host = torch.get_rng_state()
        found = self._entry(args, kwargs)
        if found is None:
            return None
        entry, tensors = found
        noise = Noise(host, device_state(entry.sound.device))
        return self._taken(entry(tensors, self._broken), args, kwargs, noise, tensors)

    def _shared_step(self, args: Args, kwargs: Kwargs, exchange: Exchange) -> Terms:
        """Take a step of one of several processes."""
        noise = Noise.of(exchange.device)
        exchange.expecting = self._across_batch
        part = exchange.attempt(lambda: self._part(args, kwargs, noise.host), NonFiniteLossError)
        return self._taken(self._exchanged(part, exchange), args, kwargs, noise, [])

    def _part(self, args: Args, kwargs: Kwargs, random_state: Tensor) -> Evaluated:
        """Evaluate this process's part of a step."""
        found = self._entry(args, kwargs)
        if found is not None:
            return found[0](found[1])
        return self._evaluated(lambda *a, **k: self._with_grads(a, k), args, kwargs, random_state)

    def _taken(
        self,
        evaluated: Evaluated,
        args: Args,
        kwargs: Kwargs,
        noise: Noise,
        tensors: list[Tensor],
    ) -> Terms:
        """Take a step without waiting for its loss."""
        self._pending.add(Pending(args, kwargs, noise, evaluated.broken, evaluated.terms.loss), tensors)
        self._take(evaluated)
        self._synchronize_if_due()
        return evaluated.terms

    def _exchanged(self, part: Evaluated | None, exchange: Exchange) -> Evaluated:
        """A step of the whole batch, from this process's part, or None where that has failed."""
        terms, broken, grads = exchange() if part is None else exchange(*part)
        if self.clip_norm is not None:
            finite, grads = self._clipped(grads, exchange.num_data)
            broken = torch.maximum(broken, (~finite).float())
        if self._broken is not None:
            broken = torch.maximum(broken, self._broken)
        return Evaluated(Terms(*terms), broken, [] if part is None else part.params, grads)

    def _synchronize_if_due(self) -> None:
        if self.exchange is not None:  # then all processes must wait at the same step
            if self.exchange.due:
                self.synchronize()
        elif self._pending.many:
            self.synchronize()

    def _clipped(self, grads: list[Tensor | None], num_data: int) -> tuple[Tensor, list[Tensor | None]]:
        """Whether the norm of the gradient is finite, and the gradient scaled down to ``clip_norm`` a datum."""
        assert self.clip_norm is not None
        norm = torch.nn.utils.get_total_norm([g for g in grads if g is not None])
        share = (self.clip_norm * num_data / (norm + 1e-6)).clamp(max=1.0)
        return torch.isfinite(norm), [g if g is None else g * share for g in grads]

    def _entry(self, args: Args, kwargs: Kwargs) -> tuple[Entry, list[Tensor]] | None:
        """The compiled step for these arguments, and their tensors; None where it must be taken eagerly."""
        # Handlers around a step, gradients left by the caller and ``no_grad`` are the eager step's to see.
        if self._captured is None or self._captured.reason is not None or _PYRO_STACK or not torch.is_grad_enabled():
            return None
        try:
            found = self._captured.entry(args, kwargs)
            if found is not None and self._check_is_due and self._captured.differs(*found, args, kwargs):
                warnings.warn(
                    f"SVI: at step {self.steps_taken} the compiled step has another loss or gradient than an eager one with "
                    "the same noise; captured anew. It had read something that no tensor holds (docs/speed.md).",
                    stacklevel=5,
                )
                self._captured.forget()
                found = self._captured.entry(args, kwargs)
        except (ValueError, NonFiniteLossError):
            return None  # the eager step says what is wrong
        return None if found is None or any(p.grad is not None for p in found[0].params) else found

    @property
    def _check_is_due(self) -> bool:
        return self.check_every is not None and self.steps_taken > 0 and self.steps_taken % self.check_every == 0

    def _take(self, evaluated: Evaluated) -> None:
        """The optimizer's step; on the device it is none from the first loss that is not finite on."""
        self.steps_taken += 1
        if isinstance(self._stepper, FusedOptim):
            self._broken = self._stepper.found_inf = evaluated.broken
        else:
            self.synchronize()
        for p, grad in zip(evaluated.params, evaluated.grads, strict=True):
            p.grad = grad
        self._stepper(evaluated.params)
        _clear(evaluated.params)

    def _with_grads(self, args: Args, kwargs: Kwargs) -> Evaluated:
        """Loss and gradients by tensors alone, for capture: nothing is left in ``grad``."""
        with self._seeing() as (used, seen):
            if hasattr(self.objective, "terms"):
                terms = self.objective.terms(self.model, self.guide, *args, **kwargs)
            else:
                loss = self.objective(self.model, self.guide, *args, **kwargs)
                terms = Terms(loss, torch.zeros_like(loss), torch.zeros_like(loss))
        params = [p for p in used.values() if p.requires_grad]
        loss = terms.loss
        grads: list[Tensor | None] = [None] * len(params)
        if loss.requires_grad and params:
            grads = [*torch.autograd.grad(loss, params, allow_unused=True)]
        finite = torch.isfinite(loss.detach())
        if self.exchange is not None:
            self.exchange.see(params)
        elif self.clip_norm is not None:
            small, grads = self._clipped(grads, seen.num_data)
            finite = finite & small
        return Evaluated(Terms(*(part.detach() for part in terms)), (~finite).float(), params, grads)

    @contextmanager
    def _seeing(self) -> Iterator[tuple[dict[int, Tensor], Used]]:
        """See which parameters an evaluation uses, with the networks in their precision."""
        # Pyro's own objectives look for param sites before they go backward; ours do not need them.
        listening = self._modules.recording() if hasattr(self.objective, "terms") else nullcontext()
        used = self._modules.begin()
        with listening, self._used(used) as seen, self._networks():
            if self.exchange is not None:
                self.exchange.plates = lambda: seen.plates
            yield used, seen

    def check_finite(self, *args: object, **kwargs: object) -> None:
        """Evaluate the loss once, altering nothing, to see whether training could go on.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite.
        """
        random_state = torch.get_rng_state()
        with unaltered(Watch(self.model, self.guide), self.objective), poutine.block():
            self._refuse_non_finite(self.evaluate_loss(*args, **kwargs), args, kwargs, random_state)

    def _loss_and_grads(self, *args: object, **kwargs: object) -> tuple[Any, Any]:
        return self.loss_and_grads(self.model, self.guide, *args, **kwargs), None

    def _check_terms(self) -> None:
        if not hasattr(self.objective, "terms"):
            raise TypeError(
                f"objective: expected one of pyro_vae.elbo, got {type(self.objective).__name__}, whose rate and "
                "distortion are not known; use pyro_vae.elbo('trace'), or SVI.step in a loop of your own."
            )

    def _terms_and_grads(self, *args: object, **kwargs: object) -> tuple[float, Terms]:
        terms = self.objective.terms(self.model, self.guide, *args, **kwargs)
        if terms.loss.requires_grad:
            terms.loss.backward()
        return terms.loss.item(), Terms(terms.loss.detach(), terms.distortion, terms.rate)

    def _step(self, args: Args, kwargs: Kwargs, evaluate: Callable[..., tuple[Any, Any]]) -> tuple[Any, Any]:
        random_state = torch.get_rng_state()
        with self._seeing() as (used, seen):
            loss, terms = self._evaluated(evaluate, args, kwargs, random_state)
        params = list(used.values())
        value = type(loss)(map(_item, loss)) if isinstance(loss, tuple) else _item(loss)
        try:
            self._refuse_non_finite(value, args, kwargs, random_state)
        except NonFiniteLossError:
            _clear(params)
            raise
        if self.clip_norm is not None:
            bound = self.clip_norm * seen.num_data
            norm = torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], bound)
            if not math.isfinite(norm.item()):
                _clear(params)
                raise NonFiniteLossError(f"a gradient of norm {norm.item()}", self.steps_taken, None)
        self._stepper(params)
        _clear(params)
        self.steps_taken += 1
        return value, terms

    def _evaluated(self, evaluate: Callable[..., Any], args: Args, kwargs: Kwargs, random_state: Tensor) -> Any:
        """Evaluate; where validation by Pyro or torch refuses a number that is not finite, say which step and site."""
        try:
            return evaluate(*args, **kwargs)
        except ValueError as error:
            torch.set_rng_state(random_state)
            site = nonfinite_site(self.model, self.guide, args, kwargs)
            if site is None:
                raise
            raise NonFiniteLossError(math.nan, self.steps_taken, site) from error

    def _refuse_non_finite(self, value: Any, args: Args, kwargs: Kwargs, random_state: Tensor) -> None:
        if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            torch.set_rng_state(random_state)
            raise NonFiniteLossError(value, self.steps_taken, nonfinite_site(self.model, self.guide, args, kwargs))


def _item(loss: Any) -> Any:
    return loss.item() if isinstance(loss, Tensor) else loss


def _clear(params: Iterable[Tensor]) -> None:
    for p in params:
        p.grad = None
