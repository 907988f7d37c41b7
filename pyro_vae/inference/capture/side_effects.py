"""What a program uses besides its arguments, watched while it is captured: modules, parameters, and what a run may alter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.system.randomness import own_randomness

#: How Pyro names the running mean of a score-function term in the parameter store.
BASELINE = "__baseline_avg_downstream_cost_"


class Watch:
    """What a program uses and a graph holds: modules, and parameters of the store; and whether they are what they were.

    Args:
        roots: Model and guide; a module that one of them is, or is a method of, is watched, and all within it.
    """

    def __init__(self, *roots: Any) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._seen: list[tuple[nn.Module, bool, tuple[Any, ...]]] = []
        self._store: list[tuple[str, Tensor]] = []
        for root in roots:
            inner = poutine.unwrap(root)
            owner = getattr(inner, "__self__", inner)
            if isinstance(owner, nn.Module):
                self.add(owner)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the modules that are called meanwhile; afterwards all buffers are as they were before."""
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
        """Those that are watched."""
        return list(self._modules.values())

    def add(self, module: nn.Module) -> None:
        """Watch a module and all within it."""
        if id(module) in self._modules:
            return
        for inner in module.modules():
            if id(inner) not in self._modules:
                self._modules[id(inner)] = inner
                self._buffers += _copies(inner)

    def remember(self, params: list[Tensor]) -> None:
        """Take what the modules hold now, and the store of ``params``, as what it must be."""
        used = {id(p) for p in params}
        self._seen = [(m, m.training, _members(m)) for m in self._modules.values()]
        self._store = [(name, p) for name, p in pyro.get_param_store()._params.items() if id(p) in used]

    def unchanged(self) -> bool:
        """Whether parameters, buffers, submodules and ``training`` are the same objects as when remembered."""
        for module, training, members in self._seen:
            now = _members(module)
            if module.training is not training or len(now) != len(members) or not all(map(is_, now, members)):
                return False
        params = pyro.get_param_store()._params
        return all(params.get(name) is p for name, p in self._store)


def _members(module: nn.Module) -> tuple[Any, ...]:
    hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
    return (*module._parameters.values(), *module._buffers.values(), *module._modules.values(), *hooks)


def _copies(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(b, b.detach().clone()) for b in module._buffers.values() if b is not None]


@contextmanager
def unaltered(watch: Watch, state: Any = None) -> Iterator[None]:
    """Leave generators, buffers, Pyro's running baselines and an objective's state as they were before.

    Args:
        watch: Watches the modules meanwhile.
        state: An objective that may have ``state_dict`` and ``load_state_dict``.
    """
    kept = _copied(state.state_dict()) if hasattr(state, "state_dict") else None
    store = pyro.get_param_store()._params
    baselines = {name: p.detach().clone() for name, p in store.items() if name.startswith(BASELINE)}
    others = random.getstate(), np.random.get_state()
    try:
        with own_randomness(), watch.watching():
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])
        if kept is not None:
            state.load_state_dict(kept)
        with torch.no_grad():
            for name, p in store.items():
                if name.startswith(BASELINE):
                    p.copy_(baselines[name]) if name in baselines else p.zero_()


def altered_by(watch: Watch, state: Any = None) -> list[Tensor]:
    """What an evaluation may alter in place: buffers of the modules, running baselines, and an objective's state."""
    objective = state.state_dict().values() if hasattr(state, "state_dict") else ()
    store = pyro.get_param_store()._params
    return [
        *(b for module in watch.modules for b in module._buffers.values() if b is not None),
        *(p for name, p in store.items() if name.startswith(BASELINE)),
        *(t for t in objective if isinstance(t, Tensor)),
    ]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
