"""Record or freeze the parameters that a Pyro program uses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.inference.program.sites import Site, is_subsample, plates_of
from pyro_vae.registration import collecting


class Used(Messenger):
    """Messenger that records the parameters used in one loss evaluation.

    Args:
        params: Dictionary that the messenger fills. A key is the ``id`` of a parameter, a value the parameter.
    """

    num_data = 1

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__()
        self.params = params

    @property
    def plates(self) -> dict[str, CondIndepStackFrame]:
        """An empty dictionary, since this class records no plates."""
        return {}

    def _pyro_post_param(self, msg: Mapping[str, Any]) -> None:
        p = msg["value"].unconstrained()
        self.params[id(p)] = p


class UsedData(Used):
    """Messenger that records parameters and plates during one loss evaluation."""

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__(params)
        self._plates: dict[str, CondIndepStackFrame] | None = None

    def _pyro_post_sample(self, msg: Site) -> None:
        if not is_subsample(msg) and not msg["infer"].get("_deterministic", False):
            plates = plates_of(msg)
            kept = plates if self._plates is None else {k: v for k, v in self._plates.items() if k in plates}
            self._plates = kept

    @property
    def plates(self) -> dict[str, CondIndepStackFrame]:
        """The plates that enclose every sample site, by plate name."""
        return self._plates or {}

    @property
    def num_data(self) -> int:  # type: ignore[override]
        """Full size of the plate that encloses every sample site.

        The size is 1 if no plate, or more than one plate, encloses every sample site.
        """
        plates = list(self.plates.values())
        return plates[0].full_size if len(plates) == 1 else 1


class _Params(Messenger):
    """Messenger that records every parameter that a program uses."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_post_param(self, msg: Mapping[str, Any]) -> None:
        value = msg["value"]
        self.params.append(value.unconstrained() if hasattr(value, "unconstrained") else value)


@contextmanager
def parameters_used() -> Iterator[list[Tensor]]:
    """Record parameters that programs use inside the ``with`` block.

    The block receives a list, which is filled with the parameters of ``pyro.param``, of ``pyro.module`` and of this
    package's models.
    """
    with collecting() as params, _Params(params):
        yield params


@contextmanager
def frozen(params: list[Tensor]) -> Iterator[None]:
    """Treat ``params`` as constants inside the ``with`` block: no gradients."""
    learning = [p for p in params if p.is_leaf and p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        with warnings.catch_warnings():  # pyro.module warns about every parameter without a gradient
            warnings.filterwarnings("ignore", ".* was not registered in the param store")
            yield
    finally:
        for p in learning:
            p.requires_grad_(True)
