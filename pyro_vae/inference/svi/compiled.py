"""Compiled steps: loss and gradients of an SVI from captured graphs."""

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

#: A program whose arguments have had more shapes than this runs eagerly.
SHAPES = 16


@dataclass
class Entry:
    """A captured step for one signature of arguments.

    Attributes:
        graph: The graph; its last input is 1 if an earlier step was broken.
        watch: Watches the modules and parameters that it uses.
        params: The parameters.
        has_grad: For each parameter, True if it has a gradient.
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
        """Return True if the tensors and modules that it holds are unchanged.

        That is, the same objects, of the same shape, type and ``requires_grad``.
        """
        return self.watch.unchanged() and list(map(_brief, self.graph.held)) == self._made_for

    def __call__(self, tensors: list[Tensor], broken: Tensor | None = None) -> Evaluated:
        """Evaluate loss and gradients.

        Args:
            tensors: The tensors among the arguments.
            broken: 1 if an earlier step was broken. Then, and if this one is, only random numbers are altered.
        """
        loss, distortion, rate, broken, *rest = self.graph([*tensors, self.sound if broken is None else broken])
        grads = iter(rest)
        by_parameter = [next(grads) if has else None for has in self.has_grad]
        return Evaluated(Terms(loss, distortion, rate), broken, self.params, by_parameter)


def _given(tensors: list[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _size(x: Tensor) -> float:
    """Return the absolute value; 0 if it is not finite."""
    return float(x.detach().abs().nan_to_num(0.0, 0.0, 0.0))


def _brief(x: Tensor) -> tuple[torch.Size, torch.dtype, torch.device, bool]:
    """Describe what ``module.to(...)`` and ``requires_grad_`` change of one tensor."""
    return x.shape, x.dtype, x.device, x.requires_grad


class CapturedSteps(GraphCache[Entry]):
    """The captured steps of one SVI.

    Args:
        evaluate: Evaluates loss and gradients eagerly, given ``(args, kwargs)``; this is what is captured.
        objective: The objective; capture leaves its state as it was.
        pair: Model and guide.
        precision: ``"float32"`` or ``"bf16"``, which decides how closely a captured step must agree with an eager one.
    """

    refusal = "SVI: this step cannot be compiled and is taken eagerly"
    difference = "it has another loss or gradient than run by Python with the same noise"

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
        """Give up because the objective is no function of tensors."""
        self.give_up(
            "expected an objective of pyro_vae.elbo or a function that gives the loss, got "
            f"{type(self.objective).__name__}"
        )

    def entry(self, args: Args, kwargs: Kwargs) -> tuple[Entry, list[Tensor]] | None:
        """Return the captured step, and the tensors among the arguments.

        None if the step must be eager.

        Raises:
            Exception: What an eager evaluation raises.
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
        """Compare with an eager step, then return what :meth:`entry` does.

        If they differ, warn and capture anew.
        """
        found = self.entry(args, kwargs)
        if found is None or not self.differs(*found, args, kwargs):
            return found
        warnings.warn(
            f"SVI: at step {step} the compiled step has another loss or gradient than an eager one; captured anew. It had "
            "read a value outside of any tensor (docs/speed.md).",
            stacklevel=6,
        )
        self.forget()
        return self.entry(args, kwargs)

    def differs(self, entry: Entry, tensors: list[Tensor], args: Args, kwargs: Kwargs) -> bool:
        """Return True if an eager step has another loss or gradient.

        Both have the same noise; nothing is altered. Rounding may put a unit on the other side of a kink (ReLU's, say) and
        so change a gradient by more than rounding. Steps therefore differ only if they do so under each of three noises.
        """
        return all(self._differ_at(seed, entry, tensors, args, kwargs) for seed in (None, 1, 2))

    def _differ_at(self, seed: int | None, entry: Entry, tensors: list[Tensor], args: Args, kwargs: Kwargs) -> bool:
        """Compare under one noise; None is that of the next step."""
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
        """Capture a step; return None if no parameter has a gradient now."""
        if len(self.graphs) >= SHAPES:
            raise NotCapturedError(f"its arguments have had more than {SHAPES} shapes")
        watch = Watch(*self.pair)
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
                raise NotCapturedError("it uses other parameters from one run to the next")
            broken = torch.maximum(evaluated.broken, earlier)
            with torch.no_grad():
                for t, before in state:
                    t.copy_(torch.where(broken > 0, before, t))
            return (*evaluated.terms, broken, *_given(evaluated.grads))

        return function
