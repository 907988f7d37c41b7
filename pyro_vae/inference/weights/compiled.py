"""Compiled draws: one captured graph gives the log weights of many batches."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_vae.inference.capture.cache import Batch, BatchGraph, GraphCache, with_tensors
from pyro_vae.inference.capture.graph import OTHER_NOISE, ROUNDING, NotCapturedError, agree, describe, signature
from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.noise import Noise, NoiseShape
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.weights.draws import Draws, T

#: After this number of batches whose graph differs from an eager call, all further draws are eager.
MISFITS = 3


class _Inputs(NamedTuple):
    """Inputs of a captured graph for one batch.

    Attributes:
        tensors: The arguments of model and guide that are tensors.
        held: Parameters of the posterior's distributions, and the indices that subsampling plates drew.
        noise: Standard normal numbers, by site name; empty if the sites are drawn with torch's random generator.
    """

    tensors: list[Tensor]
    held: list[Tensor]
    noise: dict[str, Tensor]


class _Given:
    """A :class:`pyro_vae.inference.program.noise.Noise` that returns stored numbers."""

    def __init__(self, numbers: dict[str, Tensor]) -> None:
        self.numbers = numbers

    def __call__(self, name: str, _start: int, _num: int, _like: NoiseShape) -> Tensor:
        return self.numbers[name]


def _numbers(draws: Draws[T], num_samples: int, noise: Noise, start: int) -> dict[str, Tensor]:
    """Make noise for each site that used noise in the first draws."""
    return {name: noise(name, start, num_samples, like) for name, like in draws.noise_shapes.items()}


class _Draw(Generic[T]):
    """A captured graph that makes K draws, for batches with equal shapes."""

    def __init__(self, draws: Draws[T], num_samples: int, inputs: _Inputs) -> None:
        self._watch: Watch = Watch(draws.model, draws.guide)
        self._make: Callable[..., T] = type(self._eager(draws, num_samples, inputs))
        with unaltered(self._watch):
            torch.manual_seed(OTHER_NOISE)
            other: list[Tensor] = [torch.randn_like(numbers) for numbers in inputs.noise.values()]
            function = _function(draws, num_samples, list(inputs.noise))
            self._graph = BatchGraph(function, [*inputs.tensors, *other], inputs.held)

    def _eager(self, draws: Draws[T], num_samples: int, inputs: _Inputs) -> T:
        for _, site in sample_sites(draws.guide_trace):
            trust(site["fn"])
        with unaltered(self._watch):
            return draws.eagerly(num_samples, _Given(inputs.noise) if inputs.noise else None)

    def agrees(self, draws: Draws[T], num_samples: int, inputs: _Inputs) -> bool:
        """Return True if graph and eager call agree, given the same noise."""
        eager = self._eager(draws, num_samples, inputs)
        with unaltered(self._watch):
            ours = self(inputs)
        return agree(ours, eager, ROUNDING["float32"])

    def __call__(self, inputs: _Inputs) -> T:
        held = self._graph.inputs(inputs.held)
        return self._make(*self._graph([*inputs.tensors, *inputs.noise.values()], held))


def _function(draws: Draws[T], num_samples: int, sites: list[str]) -> Callable[..., tuple[Tensor, ...]]:
    def function(*given: Tensor) -> tuple[Tensor, ...]:
        inputs = iter(given)
        with with_tensors(draws, inputs):
            numbers = dict(zip(sites, inputs, strict=True))
            return tuple(draws.eagerly(num_samples, _Given(numbers) if numbers else None))

    return function


class CapturedDraws(GraphCache[_Draw[Any]]):
    """Cache of captured graphs that draw from one guide, for many batches.

    The inputs of a graph are the arguments of model and guide for a batch and the parameters of the posterior q(z|x),
    so the encoder runs once for each batch. For each batch, the result of the graph is compared with that of an eager
    call; if they differ, a new graph is captured. After ``MISFITS`` batches with a difference, all further draws are
    eager.
    """

    refusal = "log weights: draws cannot be compiled and are made eagerly"
    difference = "they give other log importance weights than eager draws with the same noise"
    most_misfits = MISFITS
    misfit = "they depend on more of the batch than its arguments and the tensors of its posterior"

    def __init__(self) -> None:
        super().__init__()
        self._agreed: weakref.WeakKeyDictionary[object, set[Hashable]] = weakref.WeakKeyDictionary()

    def __call__(self, draws: Draws[T], num_samples: int, noise: Noise | None = None, start: int = 0) -> T | None:
        """Draw K times; return None if the draws must be eager.

        Args:
            draws: The :class:`Draws` object of one batch.
            num_samples: K, the number of draws.
            noise: Function that returns standard normal numbers; see :class:`ProposalDraws`.
            start: Index of the first draw, passed to ``noise``.
        """
        if self.reason is not None:
            return None
        try:
            described, tensors = signature(draws.args, draws.kwargs)
            numbers = {} if noise is None else _numbers(draws, num_samples, noise, start)
            inputs = _Inputs(tensors, list(held_by(draws)), numbers)
            shapes = tuple((name, describe(t)) for name, t in numbers.items())
            key = described, num_samples, tuple(map(describe, inputs.held)), shapes
            agreed = self._agreed.setdefault(draws, set())
            if key not in agreed or key not in self.graphs:
                self.find(
                    key,
                    lambda: _Draw(draws, num_samples, inputs),
                    lambda graph: graph.agrees(draws, num_samples, inputs),
                )
                agreed.add(key)
        except NotCapturedError as error:
            self.give_up(str(error), stacklevel=6)
            return None
        terms: T = self.graphs[key](inputs)
        return terms


def trust(value: object) -> None:
    """Switch off the argument checks of a distribution.

    A graph cannot capture the checks. They have already been made in the first trace.
    """
    if isinstance(value, Distribution) and value.__dict__.get("_validate_args", True):
        value._validate_args = False
        for inner in vars(value).values():
            trust(inner)


def held_by(batch: Batch) -> Iterator[Tensor]:
    """Yield the posterior's parameters for a batch, then the subsampled indices."""
    seen: set[int] = set()
    for _, site in sample_sites(batch.guide_trace):
        yield from _tensors(site["fn"], seen)
    for site in batch.fixed.nodes.values():
        yield site["value"]


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield each tensor inside a distribution once, in a fixed order.

    The order depends only on the structure of the distribution, not on its values.
    """
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Distribution | Transform):
        if id(value) in seen:
            return
        seen.add(id(value))
        value = [vars(value)[name] for name in sorted(vars(value))]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner, seen)
