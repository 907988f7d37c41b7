"""Parameters that a loss evaluation used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.inference.program.sites import is_subsample, plates_of
from pyro_vae.registration import collecting


class Used(Messenger):
    """Sees which parameters one evaluation of the loss used, and adds them to ``params``, by id."""

    num_data = 1

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__()
        self.params = params

    @property
    def plates(self) -> dict[str, Any]:
        """The plates around all sites, by name; none where no one has asked to see them."""
        return {}

    def _pyro_post_param(self, msg: Any) -> None:
        p = msg["value"].unconstrained()
        self.params[id(p)] = p


class UsedData(Used):
    """Sees, besides, for how many data the loss stands."""

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__(params)
        self._plates: dict[str, Any] | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_subsample(msg) and not msg["infer"].get("_deterministic", False):
            plates = plates_of(msg)
            kept = plates if self._plates is None else {k: v for k, v in self._plates.items() if k in plates}
            self._plates = kept

    @property
    def plates(self) -> dict[str, Any]:
        """The plates around all sites, by name."""
        return self._plates or {}

    @property
    def num_data(self) -> int:  # type: ignore[override]
        """Full size of the one plate around all sites, 1 where there is none or several."""
        plates = list(self.plates.values())
        return plates[0].full_size if len(plates) == 1 else 1


class _Params(Messenger):
    """Hears of every parameter that a program uses."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        self.params.append(value.unconstrained() if hasattr(value, "unconstrained") else value)


@contextmanager
def parameters_used() -> Iterator[list[Tensor]]:
    """Collect the parameters that programs use meanwhile, through ``pyro.param``, ``pyro.module`` and our models."""
    with collecting() as params, _Params(params):
        yield params


@contextmanager
def frozen(params: list[Tensor]) -> Iterator[None]:
    """Let no gradient reach ``params`` from what is computed meanwhile."""
    learning = [p for p in params if p.is_leaf and p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        with warnings.catch_warnings():  # pyro.module tells of every parameter that does not learn
            warnings.filterwarnings("ignore", ".* was not registered in the param store")
            yield
    finally:
        for p in learning:
            p.requires_grad_(True)
