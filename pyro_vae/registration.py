"""``pyro.module`` without a message for each parameter at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from torch import Tensor, nn


class Recorder:
    """The parameters of registered modules that one SVI has seen.

    Attributes:
        known: Parameters of a module, by its id, from an earlier step in which all of them came as ``param`` messages.
        used: Parameters of the current step, by id.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[nn.Module, list[nn.Parameter]]] = {}
        self.used: dict[int, Tensor] = {}
        self._registered: list[nn.Module] = []

    def begin(self) -> dict[int, Tensor]:
        """Begin a step; return the dict of its parameters."""
        self.used, self._registered = {}, []
        return self.used

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of :func:`register` in one step."""
        _recorders.append(self)
        try:
            yield
        finally:
            _recorders.pop()
        for module in self._registered:
            own = [p for p in module.parameters() if p.requires_grad]
            # Parameters that a handler such as poutine.lift replaced send no messages, so the module is never known.
            if own and all(id(p) in self.used for p in own):
                self.known[id(module)] = module, own

    def use_known(self, module: nn.Module) -> bool:
        """Use the known parameters of ``module``; return False without any.

        They must still be its own.
        """
        _, params = self.known.get(id(module), (None, []))
        current = iter(module.parameters())
        if not params or any(next(current, None) is not p for p in params) or next(current, None) is not None:
            return False
        self.used.update({id(p): p for p in params})
        return True

    def note(self, module: nn.Module) -> None:
        """Note that ``module`` went through ``pyro.module`` in this step."""
        self._registered.append(module)


_recorders: list[Recorder] = []
_collectors: list[list[Tensor]] = []


@contextmanager
def collecting() -> Iterator[list[Tensor]]:
    """Collect the parameters of every module that is registered inside."""
    params: list[Tensor] = []
    _collectors.append(params)
    try:
        yield params
    finally:
        _collectors.pop()


def register(name: str, module: nn.Module) -> None:
    """Call ``pyro.module``, unless the store holds another tensor.

    Inside a step of an :class:`pyro_vae.SVI` that has seen the module's parameters before, all of them are recorded at once,
    without a message for each.

    Args:
        name: Name of the module in the parameter store.
        module: A network.

    Raises:
        RuntimeError: If the store holds another tensor under one of its names, so that the network would never train.
    """
    for collected in _collectors:
        collected.extend(module.parameters())
    if _recorders and _recorders[-1].use_known(module):
        return
    key, parameter = next(iter(module.named_parameters()), (None, None))
    if parameter is None:
        return
    pyro.module(name, module)
    if _recorders:
        _recorders[-1].note(module)
    store, full = pyro.get_param_store(), f"{name}$$${key}"
    if parameter.requires_grad and full in store and store[full] is not parameter:
        raise RuntimeError(
            f"parameter store: expected this model's own tensor under {full}, got another, so the model would never train; "
            "call pyro.clear_param_store() first."
        )
