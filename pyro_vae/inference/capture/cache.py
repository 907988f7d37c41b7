"""Captured graphs of one program, one for each signature of its arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Generic, Protocol, TypeVar

from pyro.poutine import Trace
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.inference.capture.graph import Function, Graph, NotCapturedError

Args = tuple[object, ...]
Kwargs = dict[str, object]
G = TypeVar("G")


class GraphCache(Generic[G]):
    """The graphs of a program, by signature.

    A graph is compared with an eager call, and forgotten when it is wrong. A program that cannot be captured is given up,
    with a reason.

    Attributes:
        captures: Number of graphs made so far.
        reason: Why the program runs eagerly from now on, or None while it is captured.
        graphs: The graphs by signature.
    """

    #: The warning when the program is given up, before its reason.
    refusal: ClassVar[str]
    #: How a graph that is wrong from the start differs from Python.
    difference: ClassVar[str]
    #: Graphs that may go wrong later, before the program is given up; None: any number.
    most_misfits: ClassVar[int | None] = None
    #: The reason for that.
    misfit: ClassVar[str] = ""

    def __init__(self) -> None:
        self.captures = 0
        self.reason: str | None = None
        self.graphs: dict[Hashable, G] = {}
        self._misfits = 0

    def find(self, key: Hashable, make: Callable[[], G], agrees: Callable[[G], bool]) -> G:
        """Return the graph for a signature; capture one if none agrees.

        Args:
            key: The signature.
            make: Captures a graph.
            agrees: Compares a graph with an eager call.

        Raises:
            NotCapturedError: If a new graph disagrees, or too many graphs went wrong later.
        """
        graph = self.graphs.get(key)
        if graph is not None and not agrees(graph):
            del self.graphs[key]
            graph = None
            self._misfits += 1
            if self._misfits == self.most_misfits:
                raise NotCapturedError(self.misfit)
        if graph is None:
            graph = make()
            self.keep(key, graph, agrees(graph))
        return graph

    def keep(self, key: Hashable, graph: G, agrees: bool) -> None:
        """Keep a new graph that agrees with an eager call.

        Raises:
            NotCapturedError: If it does not.
        """
        if not agrees:
            raise NotCapturedError(f"captured, {self.difference}")
        self.graphs[key] = graph
        self.captures += 1

    def give_up(self, reason: str, stacklevel: int = 2) -> None:
        """Run eagerly from now on, with a warning that says why."""
        self.reason = reason
        self.graphs.clear()
        warnings.warn(f"{self.refusal}: {reason}.", stacklevel=stacklevel + 1)

    def forget(self) -> None:
        """Capture anew at the next call."""
        self.graphs.clear()


def refilled(args: Args, kwargs: Kwargs, tensors: Iterator[Tensor]) -> tuple[Args, Kwargs]:
    """Replace the tensors among arguments by the next of ``tensors``, in order."""
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    return _pytree.tree_unflatten([next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


class Batch(Protocol):
    """A program with the arguments of one batch.

    Attributes:
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of both.
        guide_trace: The guide's first trace.
        fixed: The subsamples that every call sees.
    """

    args: Args
    kwargs: Kwargs
    guide_trace: Trace
    fixed: Trace


@contextmanager
def with_tensors(batch: Batch, tensors: Iterator[Tensor]) -> Iterator[None]:
    """Within the block, replace the tensors among a batch's arguments."""
    kept = batch.args, batch.kwargs
    try:
        batch.args, batch.kwargs = refilled(*kept, tensors)
        yield
    finally:
        batch.args, batch.kwargs = kept


class BatchGraph:
    """A graph for all batches of one signature.

    Args:
        function: See :class:`Graph`.
        tensors: Its arguments for the batch that it is captured with.
        held: The tensors of that batch besides its arguments, such as the parameters of its posterior. A later call puts
            those of its own batch in their place.
    """

    def __init__(self, function: Function, tensors: list[Tensor], held: list[Tensor]) -> None:
        self._graph = Graph(function, tensors)
        places = {id(t): k for k, t in enumerate(held)}
        self._places = [places.get(id(t)) for t in self._graph.held]

    def inputs(self, held: list[Tensor]) -> list[Tensor]:
        """Return the tensors that the graph holds, those of a batch replaced."""
        return [t if k is None else held[k] for t, k in zip(self._graph.held, self._places, strict=True)]

    def __call__(self, tensors: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Run the graph at these arguments; ``inputs`` are those of :meth:`inputs`."""
        return self._graph(tensors, inputs)
