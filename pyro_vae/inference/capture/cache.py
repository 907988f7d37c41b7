"""Cache of a program's captured graphs, one for each signature of arguments."""

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
    """Cache of a program's captured graphs, one for each signature of arguments.

    The results of each graph are compared with those of an eager call. A graph with other results is discarded. A
    program that cannot be captured runs eagerly from then on, and a warning gives the reason.

    Attributes:
        captures: Number of graphs captured so far.
        reason: Reason why the program runs eagerly from now on; None as long as graphs are used.
        graphs: The captured graphs; a key is the signature of the arguments.
    """

    #: Start of the warning that the program runs eagerly from now on; the reason follows.
    refusal: ClassVar[str]
    #: Text of the error: the way in which a wrong new graph differs from an eager call.
    difference: ClassVar[str]
    #: Number of graphs that may stop agreeing with eager calls before the program runs eagerly; None: no limit.
    most_misfits: ClassVar[int | None] = None
    #: Reason given when ``most_misfits`` is reached.
    misfit: ClassVar[str] = ""

    def __init__(self) -> None:
        self.captures = 0
        self.reason: str | None = None
        self.graphs: dict[Hashable, G] = {}
        self._misfits = 0

    def find(self, key: Hashable, make: Callable[[], G], agrees: Callable[[G], bool]) -> G:
        """Return the graph for a signature; capture one if none is stored.

        Args:
            key: The signature of the arguments.
            make: Function that captures a new graph.
            agrees: Function that returns True if a graph gives the same results as an eager call.

        Raises:
            NotCapturedError: If a new graph does not agree with an eager call, or if ``most_misfits`` stored graphs no
                longer agree.
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
        """Store a new graph if it agrees with an eager call.

        Raises:
            NotCapturedError: If ``agrees`` is False.
        """
        if not agrees:
            raise NotCapturedError(f"captured, {self.difference}")
        self.graphs[key] = graph
        self.captures += 1

    def give_up(self, reason: str, stacklevel: int = 2) -> None:
        """Run the program eagerly from now on, and warn with the reason."""
        self.reason = reason
        self.graphs.clear()
        warnings.warn(f"{self.refusal}: {reason}.", stacklevel=stacklevel + 1)

    def forget(self) -> None:
        """Discard all graphs, so that the next call captures a new graph."""
        self.graphs.clear()


def refilled(args: Args, kwargs: Kwargs, tensors: Iterator[Tensor]) -> tuple[Args, Kwargs]:
    """Return the arguments with their tensors replaced, in order, by ``tensors``."""
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    return _pytree.tree_unflatten([next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


class Batch(Protocol):
    """Protocol of an object with the arguments and traces of one batch.

    Attributes:
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        guide_trace: Trace of the guide's first run on the batch.
        fixed: Trace of the subsampling sites. Every run on the batch uses the same subsample.
    """

    args: Args
    kwargs: Kwargs
    guide_trace: Trace
    fixed: Trace


@contextmanager
def with_tensors(batch: Batch, tensors: Iterator[Tensor]) -> Iterator[None]:
    """Replace the tensors in a batch's arguments inside the ``with`` block."""
    kept = batch.args, batch.kwargs
    try:
        batch.args, batch.kwargs = refilled(*kept, tensors)
        yield
    finally:
        batch.args, batch.kwargs = kept


class BatchGraph:
    """A captured graph that serves all batches with the same signature.

    Args:
        function: The function to capture; see :class:`Graph`.
        tensors: Arguments of the function, taken from the batch used at capture.
        held: Other tensors of that batch that the function reads, such as the parameters of the posterior. For another
            batch, the corresponding tensors of that batch are used instead.
    """

    def __init__(self, function: Function, tensors: list[Tensor], held: list[Tensor]) -> None:
        self._graph = Graph(function, tensors)
        places = {id(t): k for k, t in enumerate(held)}
        self._places = [places.get(id(t)) for t in self._graph.held]

    def inputs(self, held: list[Tensor]) -> list[Tensor]:
        """Return the tensors that the graph reads besides its arguments.

        The tensors in ``held`` belong to the current batch; they replace those of the batch used at capture.
        """
        return [t if k is None else held[k] for t, k in zip(self._graph.held, self._places, strict=True)]

    def __call__(self, tensors: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Run the graph on ``tensors`` and on ``inputs``, which :meth:`inputs` returned."""
        return self._graph(tensors, inputs)
