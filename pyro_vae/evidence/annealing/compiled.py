"""Captured evaluations: the densities of a path and their gradients as one compiled graph for each shape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from pyro_vae.evidence.annealing.hmc import Evaluate, State, evaluation
from pyro_vae.evidence.annealing.path import AnnealingPath
from pyro_vae.inference.capture.graph import ROUNDING, Graph, NotCapturedError, agree, describe, signature
from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.weights.compiled import held_by, trust


class CapturedPath:
    """The compiled evaluations of one model and guide, over batch after batch.

    Inputs of a graph are the latents, the arguments, and what the guide's distribution holds. For each batch it is compared
    with an eager evaluation, and captured anew where the two differ.

    Attributes:
        captures: How many graphs were made.
        reason: Why evaluations are not compiled any more, or None.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.reason: str | None = None
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, joint: AnnealingPath, u: Tensor) -> Evaluate:
        """The compiled evaluation for one batch, or the eager one where it cannot be compiled.

        Args:
            joint: The batch's densities.
            u: Latents of the shape that it will be called with, shape ``(C, B, U)``.
        """
        eager = evaluation(joint.terms)
        if self.reason is not None or not joint.vectorize:
            return eager
        try:
            return self._found(joint, u, eager)
        except NotCapturedError as error:
            self.reason = str(error)
            warnings.warn(f"annealing: gradients cannot be compiled and are made eagerly: {error}.", stacklevel=4)
            return eager

    def _found(self, joint: AnnealingPath, u: Tensor, eager: Evaluate) -> Evaluate:
        described, tensors = signature(joint.args, joint.kwargs)
        held = list(held_by(joint))  # type: ignore[arg-type]
        key = described, describe(u), joint.start, tuple(map(describe, held))
        wanted = eager(u)
        if key in self._graphs:
            found = self._graphs[key].of_batch(tensors, held)
            if agree(found(u)[1:], wanted[1:], ROUNDING["float32"]):
                return found
        self._graphs[key] = graph = _Graph(joint, u, tensors, held)
        self.captures += 1
        found = graph.of_batch(tensors, held)
        if not agree(found(u)[1:], wanted[1:], ROUNDING["float32"]):
            raise NotCapturedError("captured, they have other values than by Python")
        return found


class _Graph:
    """Evaluations for batches of one shape."""

    def __init__(self, joint: AnnealingPath, u: Tensor, tensors: list[Tensor], held: list[Tensor]) -> None:
        for _, site in sample_sites(joint.guide_trace):
            trust(site["fn"])
        watch = Watch(joint.model, joint.guide)
        with unaltered(watch):
            self._graph = Graph(_function(joint), [u, *tensors])
        places = {id(t): k for k, t in enumerate(held)}
        self._places = [places.get(id(t)) for t in self._graph.held]

    def of_batch(self, tensors: list[Tensor], held: list[Tensor]) -> Evaluate:
        inputs = [t if k is None else held[k] for t, k in zip(self._graph.held, self._places, strict=True)]

        def evaluate(u: Tensor) -> State:
            return State(u, *self._graph([u.contiguous(), *tensors], inputs))

        return evaluate


def _function(joint: AnnealingPath) -> Callable[..., tuple[Tensor, ...]]:
    leaves, spec = _pytree.tree_flatten((joint.args, joint.kwargs))
    evaluate = evaluation(joint.terms)

    def function(u: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        inputs, kept = iter(given), (joint.args, joint.kwargs)
        filled = [next(inputs) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        try:
            joint.args, joint.kwargs = _pytree.tree_unflatten(filled, spec)
            return evaluate(u)[1:]
        finally:
            joint.args, joint.kwargs = kept

    return function
