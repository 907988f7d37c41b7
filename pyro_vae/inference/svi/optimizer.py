"""Tables of optimizers and learning-rate schedules; the fused optimizer of ``SVI``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

#: Optimizers by name: the ``pyro.optim`` class that becomes one fused torch optimizer.
OPTIMIZERS = {"adam": pyro.optim.Adam, "adamw": pyro.optim.AdamW, "sgd": pyro.optim.SGD}

#: Learning-rate schedules by name: each function takes the fraction of training done, in [0, 1), and returns a factor
#: on ``lr``.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** (int(done >= 0.5) + int(done >= 0.75)),
}

FUSIBLE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class FusedOptim:
    """One fused torch optimizer over all parameters.

    Pyro keeps one optimizer for each parameter in ``source``. The fused optimizer uses the same state tensors.
    Therefore ``get_state``, ``set_state``, ``save`` and ``load`` of ``source`` work as usual, and a learning rate
    changed in ``source`` takes effect. Other hyperparameters of a parameter are read once, at the first step that uses
    the parameter.

    Args:
        source: A ``pyro.optim.Adam``, ``AdamW`` or ``SGD`` with dict arguments.
    """

    def __init__(self, source: PyroOptim) -> None:
        self.source = source
        #: A 0-dim tensor on the device, or None. While the tensor is 1, the device skips all steps; the host need not
        #: wait to know this.
        self.found_inf: Tensor | None = None
        self._fused: torch.optim.Optimizer | None = None
        self._rates: list[float] = []

    @staticmethod
    def accepts(source: PyroOptim) -> bool:
        """Return True if a fused optimizer gives the same results as ``source``."""
        options = source.pt_optim_args
        plain = isinstance(options, dict) and not {"foreach", "fused", "capturable", "differentiable"} & set(options)
        if isinstance(options, dict) and options.get("dampening") and source.pt_optim_constructor is torch.optim.SGD:
            return False  # torch does not dampen the first step
        # The subclass PyroLRScheduler has another optimizer class for each parameter.
        return (
            type(source) is PyroOptim and source.pt_optim_constructor in FUSIBLE and plain and not source.pt_clip_args
        )

    def __call__(self, params: Iterable[Tensor]) -> None:
        """Update all ``params`` that have a gradient.

        Parameters that the optimizer does not know yet are added first.
        """
        for p in params:
            if p not in self.source.optim_objs:
                waiting = self.source._state_waiting_to_be_consumed
                self.add(p, waiting.pop(pyro.get_param_store().param_name(p), None))
        rates = [single.param_groups[0]["lr"] for single in self.source.optim_objs.values()]
        if rates != self._rates:
            self._fuse()
            self._rates = rates
        if self._fused is not None:
            self._fused.found_inf = self.found_inf  # type: ignore[attr-defined]
            self._fused.step()

    def add(self, p: Tensor, state: dict[str, object] | None = None) -> None:
        """Add a parameter; ``state`` restores its optimizer state."""
        source = self.source
        single = source.pt_optim_constructor([p], **{"fused": True, **source.pt_optim_args})
        if state is not None:
            single.load_state_dict(state)
        source.optim_objs[p] = single
        self._rates = []

    def _fuse(self) -> None:
        """Make the fused optimizer, with one group for each learning rate.

        The fused optimizer shares the state of the optimizers in ``source``.
        """
        singles = self.source.optim_objs
        groups: dict[float, list[Tensor]] = {}
        for p, single in singles.items():
            groups.setdefault(float(single.param_groups[0]["lr"]), []).append(p)
        self._fused = self.source.pt_optim_constructor(
            [{**singles[members[0]].param_groups[0], "params": members} for members in groups.values()]
        )
        for p, single in singles.items():
            state = single.state[p]
            if single.param_groups[0].get("momentum") and state.get("momentum_buffer") is None:
                # Zeros give the same first step, and parameters may begin at different steps.
                state["momentum_buffer"] = torch.zeros_like(p)
            self._fused.state[p] = state

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all present and future parameters."""
        self.source.pt_optim_args = {**self.source.pt_optim_args, "lr": lr}
        for single in self.source.optim_objs.values():
            single.param_groups[0]["lr"] = lr


def as_pyro_optim(optim: object) -> PyroOptim:
    """Convert an optimizer argument to a ``PyroOptim``.

    Args:
        optim: A ``PyroOptim``, or ``functools.partial(torch.optim.Adam, lr=...)``.

    Raises:
        TypeError: If ``optim`` is neither.
    """
    if isinstance(optim, functools.partial) and isinstance(optim.func, type) and not optim.args:
        return PyroOptim(optim.func, dict(optim.keywords))
    if not isinstance(optim, PyroOptim):
        raise TypeError(
            "optim: expected a pyro.optim optimizer or functools.partial(torch.optim.Adam, lr=...), got "
            f"{type(optim).__name__}; pass the class to partial, not an instance."
        )
    return optim
