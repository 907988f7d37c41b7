"""Compiled densities and gradients of an annealing path."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_vae.evidence.annealing.hmc import Evaluate, State, evaluation
from pyro_vae.evidence.annealing.path import AnnealingPath
from pyro_vae.inference.capture.cache import BatchGraph, GraphCache, with_tensors
from pyro_vae.inference.capture.graph import ROUNDING, NotCapturedError, agree, describe, signature
from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.weights.compiled import held_by, trust


class CapturedPath(GraphCache[BatchGraph]):
    """Compiled densities of one model and guide, for many batches.

    A captured graph takes the latents, the arguments of a batch and the parameters of the guide's distributions. For each
    batch, the graph's results are compared with an eager evaluation; if they differ, the graph is captured again.
    """

    refusal = "annealing: gradients cannot be compiled and are computed eagerly"
    difference = "they differ from the eager values"

    def __call__(self, path: AnnealingPath, u: Tensor) -> Evaluate:
        """Return a compiled function that evaluates the densities of one batch.

        If the densities cannot be compiled, an eager function is returned.

        Args:
            path: Densities of the batch.
            u: Example of the unconstrained latents, shape ``(C, B, U)``. All later calls must have the same shape.
        """
        eager = evaluation(path.terms)
        if self.reason is not None or not path.vectorize:
            return eager
        try:
            described, tensors = signature(path.args, path.kwargs)
            held = list(held_by(path))
            key = described, describe(u), path.start, tuple(map(describe, held))
            expected = eager(u)[1:]
            graph = self.find(
                key,
                lambda: _captured(path, u, tensors, held),
                lambda graph: agree(_of_batch(graph, tensors, held)(u)[1:], expected, ROUNDING["float32"]),
            )
        except NotCapturedError as error:
            self.give_up(str(error), stacklevel=4)
            return eager
        return _of_batch(graph, tensors, held)


def _captured(path: AnnealingPath, u: Tensor, tensors: list[Tensor], held: list[Tensor]) -> BatchGraph:
    for _, site in sample_sites(path.guide_trace):
        trust(site["fn"])
    with unaltered(Watch(path.model, path.guide)):
        return BatchGraph(_function(path), [u, *tensors], held)


def _of_batch(graph: BatchGraph, tensors: list[Tensor], held: list[Tensor]) -> Evaluate:
    inputs = graph.inputs(held)

    def evaluate(u: Tensor) -> State:
        return State(u, *graph([u.contiguous(), *tensors], inputs))

    return evaluate


def _function(path: AnnealingPath) -> Callable[..., tuple[Tensor, ...]]:
    evaluate = evaluation(path.terms)

    def function(u: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        with with_tensors(path, iter(given)):
            return evaluate(u)[1:]

    return function
