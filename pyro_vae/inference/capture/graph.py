"""Capture: the loss of a Pyro program and its gradients as one graph of tensors, compiled by Inductor.

A program is run once under ``make_fx``, which writes down every operation on tensors that model, guide, objective and
the backward pass make; Pyro's handlers and traces, being Python, leave nothing behind. Every tensor that the graph finds
outside its arguments (parameters, buffers, a beta) becomes an input, read anew at every call: changed in place, it stays
live. Random numbers are torch's own (``fallback_random``), so that a captured step draws what an eager one would.
"""

from __future__ import annotations

import enum
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import error_summary, first_line

#: Relative difference of loss and gradients up to which a captured step is taken for the eager one.
ROUNDING = {"float32": 1e-3, "bf16": 3e-2}
#: Seed of the noise in which programs are captured: another than that of the comparison, so that a draw held as a constant
#: shows.
OTHER_NOISE = 20_170_313
#: Arguments besides tensors; they are constants of the graph.
CONSTANTS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, enum.Enum)
_OPTIONS: dict[str, Any] = {"fallback_random": True}
#: On the CPU, turning images channels-last and back costs more than the convolutions gain by it.
_CPU_OPTIONS: dict[str, Any] = _OPTIONS | {"layout_optimization": False}


class NotCapturedError(RuntimeError):
    """A program that cannot be captured; its text says why."""


def signature(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[Any, list[Tensor]]:
    """What a captured graph is good for, hashable, and the tensors among the arguments.

    Raises:
        NotCapturedError: If an argument is neither a tensor nor of a type that cannot change.
    """
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *CONSTANTS)):
            raise NotCapturedError(
                f"an argument holds a {type(leaf).__name__}, of which it cannot be seen when it changes"
            )
    described = [describe(leaf) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves]
    return (tuple(described), spec, torch.get_num_threads(), _autocast()), tensors


def _autocast() -> tuple[Any, ...]:
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)


def describe(x: Tensor) -> tuple[Any, ...]:
    """What a graph takes for granted of a tensor."""
    return tuple(x.shape), x.stride(), x.dtype, x.device, x.requires_grad


class Graph:
    """A function of tensors, captured and compiled.

    Args:
        function: Takes the tensors of one signature, gives a tuple of tensors (or None); runs Pyro programs.
        tensors: Arguments with which to capture it; run for real, so what it alters is altered.

    Attributes:
        held: What the function reads besides its arguments, in the graph's order.

    Raises:
        NotCapturedError: If it cannot be captured or compiled.
    """

    def __init__(self, function: Callable[..., tuple[Tensor | None, ...]], tensors: list[Tensor]) -> None:
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

    def __call__(self, tensors: list[Tensor], held: list[Tensor] | None = None) -> tuple[Any, ...]:
        """Run it; no autograd graph is made.

        Args:
            tensors: Arguments of the shapes with which it was captured.
            held: What stands in the place of the tensors that it holds; None: these.
        """
        with torch.no_grad():
            return self._compiled(*(self.held if held is None else held), *tensors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's compiler says to its developers, such as that it has found no CUDA."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _captured(function: Callable[..., Any], tensors: list[Tensor]) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    def checked(*given: Tensor) -> Any:
        with _NoNumbers(), _NoArrays():
            return function(*given)

    random.seed(OTHER_NOISE)
    np.random.seed(OTHER_NOISE)
    with pyro.validation_enabled(False):
        return make_fx(checked)(*tensors)


class _NoNumbers(TorchDispatchMode):
    """Refuses what takes a number, or a size, from the values of a tensor: a graph would hold it for good."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _takes_values(func, args):
            name = _NAMES.get(func.overloadpacket.__name__, str(func))
            raise NotCapturedError(f"it takes a number or a size out of the values of a tensor ({name})")
        return func(*args, **(kwargs or {}))


def _takes_values(func: Any, args: Any) -> bool:
    if func is torch.ops.aten.index.Tensor:  # by places its size is known, by a mask it is not
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


class _NoArrays(TorchFunctionMode):
    """Refuses lists and arrays made of tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise NotCapturedError(f"it takes numbers out of a tensor (.{func.__name__}())")
        return func(*args, **(kwargs or {}))


_NAMES = {"_local_scalar_dense": ".item(), float(), int(), bool() or if"}


def _compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    import torch._inductor as inductor

    on_cpu = all(x.device.type == "cpu" for x in inputs)
    with torch.no_grad():
        return inductor.compile(graph, [*inputs], options=_CPU_OPTIONS if on_cpu else _OPTIONS)


def _lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds its first inputs."""
    held: dict[str, Tensor] = {}
    places: dict[str, torch.fx.Node] = {}
    first = next(node for node in graph.graph.nodes)
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in held:
            held[node.target] = getattr(graph, node.target)
            if not isinstance(held[node.target], Tensor):
                raise NotCapturedError(f"it reads a {type(held[node.target]).__name__}, which is no tensor")
            with graph.graph.inserting_before(first):
                places[node.target] = graph.graph.placeholder(f"held_{len(held)}")
        node.replace_all_uses_with(places[node.target])
        graph.graph.erase_node(node)
    graph.recompile()
    return list(held.values())


def reason_of(error: BaseException) -> str:
    """Return the type and first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error_summary(error)[:200]


def agree(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], rounding: float, size: float = 0.0) -> bool:
    """Whether two lists of tensors differ by no more than rounding, each by its norm.

    Args:
        ours: Some tensors.
        theirs: Others of the same shapes.
        rounding: Relative difference that is allowed.
        size: Of the sums that they are differences of, whose own rounding is allowed too.
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
