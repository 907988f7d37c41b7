"""A faster ``pyro.module`` that sends fewer messages.

``pyro.module`` sends a Pyro message for each parameter at each training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from torch import Tensor, nn


class Recorder:
    """Record of the registered modules and parameters that one SVI uses.

    Attributes:
        known: The known modules, each with its parameters; the keys are module ids. A module is known after a training
            step in which every parameter of it was seen in a ``param`` message.
        used: The parameters used in the current training step; the keys are parameter ids.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[nn.Module, list[nn.Parameter]]] = {}
        self.used: dict[int, Tensor] = {}
        self._registered: list[nn.Module] = []

    def begin(self) -> dict[int, Tensor]:
        """Begin a training step; return the dict that collects its parameters."""
        self.used, self._registered = {}, []
        return self.used

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the :func:`register` calls that are made during one training step."""
        _recorders.append(self)
        try:
            yield
        finally:
            _recorders.pop()
        for module in self._registered:
            own = [p for p in module.parameters() if p.requires_grad]
            # A parameter replaced by a handler such as poutine.lift sends no message; its module is never known.
            if own and all(id(p) in self.used for p in own):
                self.known[id(module)] = module, own

    def use_known(self, module: nn.Module) -> bool:
        """Mark the parameters of a known module as used in this step.

        Returns:
            True if the parameters were marked. False, with nothing marked, if the module is not known or its parameters
            have been replaced.
        """
        _, params = self.known.get(id(module), (None, []))
        current = iter(module.parameters())
        if not params or any(next(current, None) is not p for p in params) or next(current, None) is not None:
            return False
        self.used.update({id(p): p for p in params})
        return True

    def note(self, module: nn.Module) -> None:
        """Record that ``pyro.module`` registered ``module`` in this training step."""
        self._registered.append(module)


_recorders: list[Recorder] = []
_collectors: list[list[Tensor]] = []


@contextmanager
def collecting() -> Iterator[list[Tensor]]:
    """Collect the parameters of all modules registered inside the ``with`` block."""
    params: list[Tensor] = []
    _collectors.append(params)
    try:
        yield params
    finally:
        _collectors.pop()


def register(name: str, module: nn.Module) -> None:
    """Register a module with Pyro, as ``pyro.module`` does.

    If the running :class:`pyro_vae.SVI` has seen the module's parameters in an earlier training step, all of them are
    recorded together, without a message for each parameter.

    Args:
        name: Name of the module in the parameter store.
        module: The network to register.

    Raises:
        RuntimeError: If the parameter store holds another tensor under the name of the module's first parameter. The module
            would then never train.
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
            f"parameter store: {full} holds another model's tensor, so this model would never train; call "
            "pyro.clear_param_store() first."
        )
