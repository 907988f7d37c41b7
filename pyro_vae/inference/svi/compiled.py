"""Compiled training steps: captured graphs compute loss and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.inference.capture.cache import GraphCache, refilled
from pyro_vae.inference.capture.graph import OTHER_NOISE, ROUNDING, Graph, NotCapturedError, agree, reason_of, signature
from pyro_vae.inference.capture.side_effects import Watch, altered_by, unaltered
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.svi.step import Evaluated
from pyro_vae.system.randomness import own_randomness

#: Largest number of different shapes of the arguments. With more shapes, the program runs eagerly.
SHAPES = 16


@dataclass
class Entry:
    """A captured training step for one signature of the arguments.

    A step is broken if its loss is not finite, or, with gradient clipping, if its gradient is not finite.

    Attributes:
        graph: The captured graph. The last input of the graph is 1 if an earlier step was broken, else 0.
        watch: Watches the modules and parameters that the graph uses.
        params: The parameters that the graph uses.
        has_grad: For each parameter, True if it has a gradient.
        sound: A tensor on the device that holds 0, the last input of the graph if no earlier step was broken.
    """

    graph: Graph
    watch: Watch
    params: list[Tensor]
    has_grad: list[bool]
    sound: Tensor

    def __post_init__(self) -> None:
        self._made_for = list(map(_brief, self.graph.held))

    def unchanged(self) -> bool:
        """Return True if the graph's tensors and modules are unchanged.

        They must be the same objects as at capture, and each tensor must have the same shape, type, device and
        ``requires_grad``.
        """
        return self.watch.unchanged() and list(map(_brief, self.graph.held)) == self._made_for

    def __call__(self, tensors: list[Tensor], broken: Tensor | None = None) -> Evaluated:
        """Evaluate loss and gradients.

        Args:
            tensors: The tensors among the arguments.
            broken: 1 if an earlier step was broken, 0 or None if not. If this step or an earlier step is broken, only the
                random generators change.
        """
        loss, distortion, rate, broken, *rest = self.graph([*tensors, self.sound if broken is None else broken])
        grads = iter(rest)
        by_parameter = [next(grads) if has else None for has in self.has_grad]
        return Evaluated(Terms(loss, distortion, rate), broken, self.params, by_parameter)


def _given(tensors: list[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _size(x: Tensor) -> float:
    """Return the absolute value of a 0-dim tensor; 0 if not finite."""
    return float(x.detach().abs().nan_to_num(0.0, 0.0, 0.0))


def _brief(x: Tensor) -> tuple[torch.Size, torch.dtype, torch.device, bool]:
    """Return the properties of a tensor that ``module.to`` or ``requires_grad_`` can change."""
    return x.shape, x.dtype, x.device, x.requires_grad


class CapturedSteps(GraphCache[Entry]):
    """Cache of the captured training steps of one SVI.

    Args:
        evaluate: The function to capture. ``evaluate(args, kwargs)`` returns loss and gradients.
        objective: The objective. Capture does not change its state.
        pair: Model and guide.
        precision: ``"float32"`` or ``"bf16"``; sets how much a captured step may differ from an eager step.
    """

    refusal = "SVI: this step cannot be compiled and is taken eagerly"
    difference = "the step has another loss or gradient than an eager step with the same noise"

    def __init__(
        self,
        evaluate: Callable[[Args, Kwargs], Evaluated],
        objective: ELBO | Callable[..., Tensor],
        pair: tuple[Program, Program],
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.evaluate, self.objective, self.pair, self.precision = evaluate, objective, pair, precision
        if not hasattr(objective, "terms") and isinstance(objective, ELBO):
            self.give_up_objective()

    def give_up_objective(self) -> None:
        """Run all steps eagerly, since the objective cannot be captured."""
        self.give_up(
            "expected an objective from pyro_vae.elbo or a function that returns the loss, got "
            f"{type(self.objective).__name__}"
        )

    def entry(self, args: Args, kwargs: Kwargs) -> tuple[Entry, list[Tensor]] | None:
        """Return the captured step for these arguments, and the tensors in them.

        The step is captured if necessary. If the step must run eagerly, return None.

        Raises:
            Exception: The error that the eager evaluation raised.
        """
        if self.reason is not None:
            return None
        try:
            key, tensors = signature(args, kwargs)
            entry = self.graphs.get(key)
            if entry is None or not entry.unchanged():
                self.graphs.pop(key, None)
                entry = self._captured(key, args, kwargs, tensors)
        except NotCapturedError as error:
            self.give_up(str(error))
            return None
        return None if entry is None else (entry, tensors)

    def compared(self, args: Args, kwargs: Kwargs, step: int) -> tuple[Entry, list[Tensor]] | None:
        """Compare the captured step with an eager step; return :meth:`entry`'s result.

        If the two steps differ, warn and capture the step again.
        """
        found = self.entry(args, kwargs)
        if found is None or not self.differs(*found, args, kwargs):
            return found
        warnings.warn(
            f"SVI: at step {step} the compiled step differs from an eager step in loss or gradient; it is captured again. "
            "The program uses a changing value outside tensors (docs/speed.md).",
            stacklevel=6,
        )
        self.forget()
        return self.entry(args, kwargs)

    def differs(self, entry: Entry, tensors: list[Tensor], args: Args, kwargs: Kwargs) -> bool:
        """Return True if an eager step gives another loss or gradient.

        The captured and the eager step use the same noise, and no state changes. Near a kink (such as that of ReLU), a
        rounding error can change a gradient a lot. The steps therefore count as different only if they differ with each
        of three seeds of the noise.
        """
        return all(self._differ_at(seed, entry, tensors, args, kwargs) for seed in (None, 1, 2))

    def _differ_at(self, seed: int | None, entry: Entry, tensors: list[Tensor], args: Args, kwargs: Kwargs) -> bool:
        """Return True if the steps differ with the noise of ``seed``.

        If ``seed`` is None, the noise is that of the next training step.
        """
        with own_randomness(seed):
            eager = self._eager(args, kwargs, entry.watch)
            with unaltered(entry.watch, self.objective):
                ours = entry(tensors)
        if [id(p) for p in ours.params] != [id(p) for p in eager.params]:
            return True
        rounding, whole = ROUNDING[self.precision], torch.nn.utils.get_total_norm(_given(eager.grads))
        return not (
            agree(ours.terms, eager.terms, rounding, _size(eager.terms.loss))
            and agree(ours.grads, eager.grads, rounding, _size(whole))
        )

    def _eager(self, args: Args, kwargs: Kwargs, watch: Watch) -> Evaluated:
        with unaltered(watch, self.objective):
            return self.evaluate(args, kwargs)

    def _captured(self, key: Hashable, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Entry | None:
        """Capture a step; return None if no parameter receives a gradient."""
        if len(self.graphs) >= SHAPES:
            raise NotCapturedError(f"the arguments have had more than {SHAPES} shapes")
        watch = Watch(*self.pair)
        self._eager(args, kwargs, watch)  # the first run may set up the program: an autoguide inspects its model
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
            agrees = not self.differs(entry, tensors, args, kwargs)
        except (torch.OutOfMemoryError, NotCapturedError):
            raise
        except Exception as error:
            raise NotCapturedError(reason_of(error)) from error
        self.keep(key, entry, agrees)
        return entry

    def _function(
        self, args: Args, kwargs: Kwargs, eager: Evaluated, watch: Watch
    ) -> Callable[..., tuple[Tensor, ...]]:
        def function(*inputs: Tensor) -> tuple[Tensor, ...]:
            *tensors, earlier = inputs
            state = [(t, t.clone()) for t in altered_by(watch, self.objective)]
            evaluated = self.evaluate(*refilled(args, kwargs, iter(tensors)))
            if [id(p) for p in evaluated.params] != [id(p) for p in eager.params]:
                raise NotCapturedError("the program uses other parameters from one run to the next")
            broken = torch.maximum(evaluated.broken, earlier)
            with torch.no_grad():
                for t, before in state:
                    t.copy_(torch.where(broken > 0, before, t))
            return (*evaluated.terms, broken, *_given(evaluated.grads))

        return function
