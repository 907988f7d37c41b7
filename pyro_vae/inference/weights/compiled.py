"""Captured draws: log weights of many batches from one compiled graph for each shape."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.utils import _pytree

from pyro_vae.inference.capture.graph import OTHER_NOISE, ROUNDING, Graph, NotCapturedError, agree, describe, signature
from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.noise import Noise, NoiseShape
from pyro_vae.inference.program.sites import sample_sites

#: After so many batches that no earlier graph serves, draws are eager.
MISFITS = 3

if TYPE_CHECKING:
    from pyro_vae.inference.weights.log_weights import ProposalDraws, WeightTerms


class CapturedDraws:
    """The compiled draws of one model and guide, over batch after batch.

    What a batch's posterior holds, its parameters found by the encoder once, is an input of the graph beside the arguments. For
    each batch the graph is compared with an eager call, and captured anew where the two differ; a program of which that is so
    for several batches is drawn from eagerly.

    Attributes:
        captures: How many graphs were made.
        reason: Why draws are not compiled any more, or None.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.reason: str | None = None
        self._graphs: dict[Any, _Draw] = {}
        self._agreed: weakref.WeakKeyDictionary[ProposalDraws, set[Any]] = weakref.WeakKeyDictionary()
        self._misfits = 0

    def __call__(
        self, draws: ProposalDraws, num_samples: int, noise: Noise | None = None, start: int = 0
    ) -> WeightTerms | None:
        """Draw; None where it must be done eagerly.

        Args:
            draws: The proposal for one batch.
            num_samples: K.
            noise: Where sites made of normals have their noise from: an input of the graph; see ``ProposalDraws``.
            start: Number of the first draw.
        """
        if self.reason is not None:
            return None
        try:
            key, tensors = signature(draws.args, draws.kwargs)
            held = list(held_by(draws))
            given = {} if noise is None else _numbers(draws, num_samples, noise, start)
            key = key, num_samples, tuple(map(describe, held)), tuple((n, describe(t)) for n, t in given.items())
            agreed = self._agreed.setdefault(draws, set())
            if key in self._graphs and key not in agreed:
                self._check(key, draws, num_samples, tensors, held, given)
            if key not in self._graphs:
                self._graphs[key] = _Draw(draws, num_samples, tensors, held, given)
                self.captures += 1
            agreed.add(key)
        except NotCapturedError as error:
            self.reason = str(error)
            warnings.warn(f"log weights: draws cannot be compiled and are made eagerly: {error}.", stacklevel=4)
            return None
        return self._graphs[key](tensors, held, given)

    def _check(self, key: Any, draws: ProposalDraws, *given: Any) -> None:
        """See that the graph of an earlier batch serves this one: forget it where it does not."""
        if self._graphs[key].differs(draws, *given):
            del self._graphs[key]
            self._misfits += 1
            if self._misfits == MISFITS:
                raise NotCapturedError(
                    "they depend on the batch by more than its arguments and its posterior's tensors"
                )


class _Given:
    """Noise that is at hand, as a :class:`pyro_vae.inference.program.noise.Noise`."""

    def __init__(self, numbers: dict[str, Tensor]) -> None:
        self.numbers = numbers

    def __call__(self, name: str, start: int, num: int, like: NoiseShape) -> Tensor:
        return self.numbers[name]


def _numbers(draws: ProposalDraws, num_samples: int, noise: Noise, start: int) -> dict[str, Tensor]:
    """What the sites took of the noise in the eager call before, for these draws."""
    return {name: noise(name, start, num_samples, like) for name, like in draws.noise_shapes.items()}


class _Draw:
    """K draws for batches of one shape."""

    def __init__(
        self,
        draws: ProposalDraws,
        num_samples: int,
        tensors: list[Tensor],
        held: list[Tensor],
        given: dict[str, Tensor],
    ) -> None:
        self._watch = watch = Watch(draws.model, draws.guide)
        eager = self._eager(draws, num_samples, given)
        with unaltered(watch):
            torch.manual_seed(OTHER_NOISE)
            other = [torch.randn_like(numbers) for numbers in given.values()]
            self._graph = Graph(_function(draws, num_samples, list(given)), [*tensors, *other])
        self._make = type(eager)
        places = {id(t): k for k, t in enumerate(held)}
        self._from_batch = [places.get(id(t)) for t in self._graph.held]
        if self.differs(draws, num_samples, tensors, held, given):
            raise NotCapturedError("captured, they have other log weights than drawn by Python with the same noise")

    def _eager(self, draws: ProposalDraws, num_samples: int, given: dict[str, Tensor]) -> WeightTerms:
        for _, site in sample_sites(draws.guide_trace):
            trust(site["fn"])
        with unaltered(self._watch):
            return draws.eagerly(num_samples, *((_Given(given),) if given else ()))

    def differs(
        self,
        draws: ProposalDraws,
        num_samples: int,
        tensors: list[Tensor],
        held: list[Tensor],
        given: dict[str, Tensor],
    ) -> bool:
        """Whether an eager call with the same noise has other log weights; nothing is altered."""
        eager = self._eager(draws, num_samples, given)
        with unaltered(self._watch):
            ours = self(tensors, held, given)
        return not agree(ours, eager, ROUNDING["float32"])

    def __call__(self, tensors: list[Tensor], held: list[Tensor], given: dict[str, Tensor]) -> WeightTerms:
        inputs = [t if k is None else held[k] for t, k in zip(self._graph.held, self._from_batch, strict=True)]
        return self._make(*self._graph([*tensors, *given.values()], inputs))


def _function(draws: ProposalDraws, num_samples: int, sites: list[str]) -> Any:
    leaves, spec = _pytree.tree_flatten((draws.args, draws.kwargs))

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        inputs, kept = iter(given), (draws.args, draws.kwargs)
        filled = [next(inputs) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        try:
            draws.args, draws.kwargs = _pytree.tree_unflatten(filled, spec)
            numbers = dict(zip(sites, inputs, strict=True))
            return tuple(draws.eagerly(num_samples, *((_Given(numbers),) if numbers else ())))
        finally:
            draws.args, draws.kwargs = kept

    return function


def trust(value: Any) -> None:
    """Switch off the checks of a distribution, which has been checked by the first trace: they cannot be captured."""
    if isinstance(value, Distribution) and value.__dict__.get("_validate_args", True):
        value._validate_args = False
        for inner in vars(value).values():
            trust(inner)


def held_by(draws: ProposalDraws) -> Iterator[Tensor]:
    """The tensors of a batch's own: parameters of its posterior, and the rows of a subsample."""
    seen: set[int] = set()
    for _, site in sample_sites(draws.guide_trace):
        yield from _tensors(site["fn"], seen)
    for site in draws.fixed.nodes.values():
        yield site["value"]


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that a distribution is made of, once, in an order that depends on its structure alone."""
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
