"""Capture of a Pyro program as one graph of tensors.

``make_fx`` runs the program once and records every tensor operation of model, guide, objective and backward pass. Inductor
compiles the graph. Pyro's handlers and traces are Python code and leave nothing in the graph. Every tensor that is not an
argument (a parameter, a buffer, a KL weight) becomes an input of the graph. The input is read again at every call, so
in-place changes take effect. Random numbers come from torch's own generators (``fallback_random``), so a captured step
draws the same numbers as an eager step.
"""

from __future__ import annotations

import enum
import logging
import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import error_summary, first_line

#: Largest relative difference between the loss and gradients of a captured step and of an eager step, by precision.
ROUNDING = {"float32": 1e-3, "bf16": 3e-2}
#: Seed of the noise at capture. The comparison uses other seeds, to detect a draw that became a constant of the graph.
OTHER_NOISE = 20_170_313
#: Types of arguments that become constants of the graph.
CONSTANTS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, enum.Enum)
_OPTIONS = {"fallback_random": True}
#: On the CPU, converting images to channels-last and back costs more than convolutions gain.
_CPU_OPTIONS = _OPTIONS | {"layout_optimization": False}


class NotCapturedError(RuntimeError):
    """A program cannot be captured; the message gives the reason."""


def signature(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[Hashable, list[Tensor]]:
    """Return the signature of the arguments, and the tensors that they contain.

    A graph is valid for arguments of one signature only. The signature holds the shapes and types of tensors, the
    values of all other arguments, the number of threads and the autocast settings.

    Raises:
        NotCapturedError: If an argument is neither a tensor nor of a type in ``CONSTANTS``.
    """
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *CONSTANTS)):
            raise NotCapturedError(f"an argument holds a {type(leaf).__name__}, whose changes cannot be detected")
    described = [describe(leaf) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves]
    return (tuple(described), spec, torch.get_num_threads(), _autocast()), tensors


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)


def describe(x: Tensor) -> Hashable:
    """Return the properties of a tensor that a graph depends on."""
    return tuple(x.shape), x.stride(), x.dtype, x.device, x.requires_grad


#: A function of tensors.
Function: TypeAlias = Callable[..., tuple[Tensor, ...]]


class Graph:
    """A captured and compiled function of tensors.

    Args:
        function: Function from tensors to a tuple of tensors. It may run Pyro programs.
        tensors: Arguments used at capture. The capture executes the function, with all its side effects.

    Attributes:
        held: The tensors that the function reads besides its arguments, in the order of the graph's inputs.

    Raises:
        NotCapturedError: If the function cannot be captured or compiled.
    """

    def __init__(self, function: Function, tensors: list[Tensor]) -> None:
        try:
            with _quiet():
                graph = _captured(function, tensors)
                self.held = _lift(graph)
                self._compiled = _compiled(graph, [*self.held, *tensors])
        except torch.OutOfMemoryError:
            raise
        except NotCapturedError as error:
            raise NotCapturedError(first_line(error)) from None  # without the shapes that Pyro adds
        except Exception as error:
            raise NotCapturedError(reason_of(error)) from error

    def __call__(self, tensors: list[Tensor], held: list[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Run the graph without autograd.

        Args:
            tensors: Arguments with the signature used at capture.
            held: Tensors that the function reads besides its arguments; None: the tensors in the attribute ``held``.
        """
        with torch.no_grad():
            return self._compiled(*(self.held if held is None else held), *tensors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence compiler messages for torch's developers, such as about a missing CUDA."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _captured(function: Function, tensors: list[Tensor]) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    def checked(*given: Tensor) -> tuple[Tensor, ...]:
        with _NoNumbers(), _NoArrays():
            return function(*given)

    random.seed(OTHER_NOISE)
    np.random.seed(OTHER_NOISE)
    with pyro.validation_enabled(False):
        return make_fx(checked)(*tensors)


class _NoNumbers(TorchDispatchMode):
    """Refuses numbers and sizes computed from the values of a tensor.

    A graph would keep such numbers as constants.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _takes_values(func, args):
            name = _NAMES.get(func.overloadpacket.__name__, str(func))
            raise NotCapturedError(f"the program takes a number or a size from the values of a tensor ({name})")
        return func(*args, **(kwargs or {}))


def _takes_values(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    if func is torch.ops.aten.index.Tensor:  # the size is known for an index, not for a mask
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class _NoArrays(TorchFunctionMode):
    """Refuses lists and arrays made from tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise NotCapturedError(f"the program takes numbers out of a tensor (.{func.__name__}())")
        return func(*args, **(kwargs or {}))


_NAMES = {"_local_scalar_dense": ".item(), float(), int(), bool() or if"}


def _compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Function:
    import torch._inductor as inductor

    on_cpu = all(x.device.type == "cpu" for x in inputs)
    with torch.no_grad():
        return inductor.compile(graph, [*inputs], options=_CPU_OPTIONS if on_cpu else _OPTIONS)


def _lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Turn the constant tensors of a graph into inputs; return these tensors."""
    held: dict[str, Tensor] = {}
    places: dict[str, torch.fx.Node] = {}
    first = next(node for node in graph.graph.nodes)
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in held:
            held[node.target] = getattr(graph, node.target)
            if not isinstance(held[node.target], Tensor):
                raise NotCapturedError(f"the program reads a {type(held[node.target]).__name__}, which is not a tensor")
            with graph.graph.inserting_before(first):
                places[node.target] = graph.graph.placeholder(f"held_{len(held)}")
        node.replace_all_uses_with(places[node.target])
        graph.graph.erase_node(node)
    graph.recompile()
    return list(held.values())


def reason_of(error: BaseException) -> str:
    """Return the type and first line of the original error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error_summary(error)[:200]


def agree(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], rounding: float, size: float = 0.0) -> bool:
    """Return True if two lists of tensors differ only by rounding.

    Args:
        ours: The first list of tensors.
        theirs: The second list of tensors, with the same shapes.
        rounding: Largest relative difference, in the norm of each tensor.
        size: Magnitude of large sums, if the tensors are differences of such sums. A difference as large as the
            rounding error of the sums is then allowed as well.
    """
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            if a is not b:
                return False
            continue
        a, b = a.double(), b.double()
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
                return False
            continue
        scale = torch.maximum(a.norm(), b.norm())
        if float((a - b).norm()) > rounding * float(scale) + 1e-6 * max(1.0, size, a.numel() ** 0.5):
            return False
    return True
