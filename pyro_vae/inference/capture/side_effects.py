"""Record the modules that a program uses; restore the state it alters."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.system.randomness import own_randomness

V = TypeVar("V")

#: Prefix of the names, in the parameter store, of running means of score-function terms.
BASELINE = "__baseline_avg_downstream_cost_"


@runtime_checkable
class Stateful(Protocol):
    """Protocol of an objective that has a state to save and restore."""

    def state_dict(self) -> dict[str, object]:
        """Return the objective's state."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state returned by :meth:`state_dict`."""


class Watch:
    """Record of the modules and parameters that a program uses.

    Args:
        roots: Model and guide. If a root is a module or a method of a module, that module and its submodules are watched.
    """

    def __init__(self, *roots: object) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._seen: list[tuple[nn.Module, bool, tuple[object, ...]]] = []
        self._store: list[tuple[str, Tensor]] = []
        for root in roots:
            inner = poutine.unwrap(root)
            owner = getattr(inner, "__self__", inner)
            if isinstance(owner, nn.Module):
                self.add(owner)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch each module called inside the block; restore its buffers afterwards."""
        self._buffers = [pair for module in self._modules.values() for pair in _copies(module)]
        hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: self.add(module))
        try:
            yield
        finally:
            hook.remove()
            with torch.no_grad():
                for buffer, value in self._buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            self._buffers = []

    @property
    def modules(self) -> list[nn.Module]:
        """The watched modules."""
        return list(self._modules.values())

    def add(self, module: nn.Module) -> None:
        """Watch a module and its submodules."""
        if id(module) in self._modules:
            return
        for inner in module.modules():
            if id(inner) not in self._modules:
                self._modules[id(inner)] = inner
                self._buffers += _copies(inner)

    def remember(self, params: list[Tensor]) -> None:
        """Record the members of watched modules, and the stored ``params``."""
        used = {id(p) for p in params}
        self._seen = [(m, m.training, _members(m)) for m in self._modules.values()]
        self._store = [(name, p) for name, p in pyro.get_param_store()._params.items() if id(p) in used]

    def unchanged(self) -> bool:
        """Return True if nothing that :meth:`remember` recorded has changed.

        Parameters, buffers and submodules must be the same objects as then. Each module's ``training`` and number of
        hooks must be the same.
        """
        for module, training, members in self._seen:
            now = _members(module)
            if module.training is not training or len(now) != len(members) or not all(map(is_, now, members)):
                return False
        params = pyro.get_param_store()._params
        return all(params.get(name) is p for name, p in self._store)


def _members(module: nn.Module) -> tuple[object, ...]:
    hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
    return (*module._parameters.values(), *module._buffers.values(), *module._modules.values(), *hooks)


def _copies(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(b, b.detach().clone()) for b in module._buffers.values() if b is not None]


@contextmanager
def unaltered(watch: Watch, objective: object = None) -> Iterator[None]:
    """Restore all state that the code inside the ``with`` block alters.

    The state consists of the random generators, the buffers of modules, Pyro's running baselines and the objective's
    state.

    Args:
        watch: The record of modules. Modules that the block calls are added.
        objective: An objective, which may be :class:`Stateful`.
    """
    kept = _copied(objective.state_dict()) if isinstance(objective, Stateful) else {}
    store = pyro.get_param_store()._params
    baselines = {name: p.detach().clone() for name, p in store.items() if name.startswith(BASELINE)}
    others = random.getstate(), np.random.get_state()
    try:
        with own_randomness(), watch.watching():
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])
        if isinstance(objective, Stateful):
            objective.load_state_dict(kept)
        with torch.no_grad():
            for name, p in store.items():
                if name.startswith(BASELINE):
                    p.copy_(baselines[name]) if name in baselines else p.zero_()


def altered_by(watch: Watch, objective: object = None) -> list[Tensor]:
    """Return the tensors that a loss evaluation may alter in place.

    These are the buffers of the watched modules, Pyro's running baselines and the objective's state.
    """
    state = objective.state_dict().values() if isinstance(objective, Stateful) else ()
    store = pyro.get_param_store()._params
    return [
        *(b for module in watch.modules for b in module._buffers.values() if b is not None),
        *(p for name, p in store.items() if name.startswith(BASELINE)),
        *(t for t in state if isinstance(t, Tensor)),
    ]


def _copied(state: dict[str, V]) -> dict[str, V | Tensor]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
