"""Captured steps: an SVI's loss and gradients from one compiled graph for each shape of its arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.inference.capture.graph import OTHER_NOISE, ROUNDING, Graph, NotCapturedError, agree, reason_of, signature
from pyro_vae.inference.capture.side_effects import Watch, altered_by, unaltered
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.program.traces import Args, Kwargs
from pyro_vae.system.randomness import own_randomness

#: How many shapes of arguments are captured; a program that keeps changing them runs eagerly.
SHAPES = 16


class Evaluated(NamedTuple):
    """One evaluation of the loss with its gradients.

    Attributes:
        terms: See :class:`Terms`; detached.
        broken: 1 where the loss (or, with clipping, the gradient) is not finite, else 0; 0-dim float32, on the device.
        params: The parameters used, in the order of their first use.
        grads: A gradient, or None, for each of them.
    """

    terms: Terms
    broken: Tensor
    params: list[Tensor]
    grads: list[Tensor | None]


@dataclass
class Entry:
    """A captured step for one signature of arguments.

    Attributes:
        graph: Its last input is whether an earlier step was broken.
        watch: What it uses.
        params: The parameters.
        has_grad: Which of them have a gradient.
        sound: 0, on the device: no earlier step was broken.
    """

    graph: Graph
    watch: Watch
    params: list[Tensor]
    has_grad: list[bool]
    sound: Tensor

    def __post_init__(self) -> None:
        self._made_for = list(map(_brief, self.graph.held))

    def unchanged(self) -> bool:
        """Whether what it holds is what it was: the same objects, of the same shape and type, that learn or do not."""
        return self.watch.unchanged() and list(map(_brief, self.graph.held)) == self._made_for

    def __call__(self, tensors: list[Tensor], broken: Tensor | None = None) -> Evaluated:
        """Evaluate loss and gradients at these arguments.

        Args:
            tensors: Of the arguments.
            broken: 1 where an earlier step was broken: then, as where this one is, nothing but random numbers is altered.
        """
        loss, distortion, rate, broken, *rest = self.graph([*tensors, self.sound if broken is None else broken])
        grads = iter(rest)
        found = [next(grads) if has else None for has in self.has_grad]
        return Evaluated(Terms(loss, distortion, rate), broken, self.params, found)


def _given(tensors: list[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _finite(x: Tensor) -> float:
    """Its size; 0 where it has none."""
    return float(x.detach().abs().nan_to_num(0.0, 0.0, 0.0))


def _brief(x: Tensor) -> tuple[Any, ...]:
    """What ``module.to(...)`` and ``requires_grad_`` change of a parameter that stays the same object."""
    return x.shape, x.dtype, x.device, x.requires_grad


@dataclass
class CapturedSteps:
    """The captured steps of one SVI.

    Args:
        evaluate: Evaluates loss and gradients eagerly, of ``(args, kwargs)``; it is also what is captured.
        objective: The objective, whose state (if any) capture must not alter.
        roots: Model and guide.
        precision: ``"float32"`` or ``"bf16"``: how closely a captured step must agree with an eager one.

    Attributes:
        captures: How many graphs were made.
        reason: Why no step is captured any more, or None.
    """

    evaluate: Callable[[Any, Any], Evaluated]
    objective: Any
    roots: tuple[Any, ...]
    precision: str = "float32"
    captures: int = 0
    reason: str | None = None
    _entries: dict[Any, Entry] = field(default_factory=dict)

    def entry(self, args: Args, kwargs: Kwargs) -> tuple[Entry, list[Tensor]] | None:
        """The captured step for these arguments, and their tensors; None where it must be taken eagerly.

        Raises:
            Exception: What an eager evaluation raises.
        """
        if self.reason is not None:
            return None
        try:
            key, tensors = signature(args, kwargs)
            found = self._entries.get(key)
            if found is None or not found.unchanged():
                self._entries.pop(key, None)
                found = self._captured(args, kwargs, tensors)
        except NotCapturedError as error:
            self.give_up(str(error))
            return None
        if found is None:
            return None
        self._entries[key] = found
        return found, tensors

    def give_up(self, reason: str) -> None:
        """From now on, eagerly."""
        self.reason = reason
        self._entries.clear()
        warnings.warn(f"SVI: this step cannot be compiled and is taken eagerly: {reason}.", stacklevel=2)

    def differs(self, entry: Entry, tensors: list[Tensor], args: Args, kwargs: Kwargs) -> bool:
        """Whether an eager step with the same noise has another loss or gradient; nothing is altered.

        Rounding may put a unit on the other side of a kink (ReLU's, say) and so change a gradient by more than rounding:
        steps differ if they do so under each of three noises.
        """
        return all(self._differ_at(seed, entry, tensors, args, kwargs) for seed in (None, 1, 2))

    def _differ_at(self, seed: int | None, entry: Entry, tensors: list[Tensor], args: Args, kwargs: Kwargs) -> bool:
        """As :meth:`differs` under one noise; None: that of the step to come."""
        with own_randomness(seed):
            eager = self._eager(args, kwargs, entry.watch)
            with unaltered(entry.watch, self.objective):
                ours = entry(tensors)
        if [id(p) for p in ours.params] != [id(p) for p in eager.params]:
            return True
        rounding, whole = ROUNDING[self.precision], torch.nn.utils.get_total_norm(_given(eager.grads))
        return not (
            agree(ours.terms, eager.terms, rounding, _finite(eager.terms.loss))
            and agree(ours.grads, eager.grads, rounding, _finite(whole))
        )

    def forget(self) -> None:
        """Capture anew at the next step."""
        self._entries.clear()

    def _eager(self, args: Args, kwargs: Kwargs, watch: Watch) -> Evaluated:
        with unaltered(watch, self.objective):
            return self.evaluate(args, kwargs)

    def _captured(self, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Entry | None:
        """A new entry; None where there is nothing to learn, now."""
        if len(self._entries) >= SHAPES:
            raise NotCapturedError(f"its arguments have had more than {SHAPES} shapes")
        watch = Watch(*self.roots)
        self._eager(args, kwargs, watch)  # the first run of a program may set it up: an autoguide looks at its model
        eager = self._eager(args, kwargs, watch)
        has_grad = [g is not None for g in eager.grads]
        if not any(has_grad):
            return None
        sound = torch.zeros((), device=eager.terms.loss.device)
        try:
            with unaltered(watch, self.objective), pyro.validation_enabled(False):
                torch.manual_seed(OTHER_NOISE)
                graph = Graph(self._function(args, kwargs, eager, watch), [*tensors, sound])
            watch.remember(eager.params)
            entry = Entry(graph, watch, eager.params, has_grad, sound)
            differs = self.differs(entry, tensors, args, kwargs)
        except (torch.OutOfMemoryError, NotCapturedError):
            raise
        except Exception as error:
            raise NotCapturedError(reason_of(error)) from error
        if differs:
            raise NotCapturedError("captured, it has another loss or gradient than run by Python with the same noise")
        self.captures += 1
        return entry

    def _function(
        self, args: Args, kwargs: Kwargs, eager: Evaluated, watch: Watch
    ) -> Callable[..., tuple[Tensor, ...]]:
        leaves, spec = _pytree.tree_flatten((args, kwargs))

        def function(*given: Tensor) -> tuple[Tensor, ...]:
            *inner, earlier = given
            inputs = iter(inner)
            state = [(t, t.clone()) for t in altered_by(watch, self.objective)]
            filled = [next(inputs) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            found = self.evaluate(*_pytree.tree_unflatten(filled, spec))
            if [id(p) for p in found.params] != [id(p) for p in eager.params]:
                raise NotCapturedError("it uses other parameters from one run to the next")
            broken = torch.maximum(found.broken, earlier)
            with torch.no_grad():
                for t, before in state:
                    t.copy_(torch.where(broken > 0, before, t))
            return (*found.terms, broken, *(g for g in found.grads if g is not None))

        return function
