"""Parameters that an objective depends on and Pyro knows nothing of: no optimizer would move them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.parameters import Used
from pyro_vae.inference.program.traces import Program
from pyro_vae.models.protocol import PyroModel


def check_reached(
    name: str,
    parts: PyroModel,
    objective: Any,
    pair: tuple[Program, Program],
    batch: tuple[Tensor, ...],
    known: Mapping[int, Tensor] | None = None,
) -> None:
    """Refuse a model of whose parameters some have a gradient and are not registered; nothing is altered.

    Those without a gradient, as of a network for pictures alone, may be what they are, and so may frozen ones.

    Args:
        name: What the sentence calls the model.
        parts: The model, whose parameters they are.
        objective: What is trained.
        pair: Model and guide, as it is given them.
        batch: Some data.
        known: Parameters that Pyro knows of, by id; None: those that it meets here.

    Raises:
        ValueError: If there are any.
    """
    met: dict[int, Tensor] = {}
    if known is not None and not _others(parts, known):
        return
    with unaltered(Watch(*pair), objective), poutine.block(), pyro.validation_enabled(False), torch.enable_grad():
        with Used(met):
            loss = objective.terms(*pair, *batch).loss
        others = _others(parts, met if known is None else known)
        if not others or not loss.requires_grad:
            return
        grads = torch.autograd.grad(loss, [*others.values()], allow_unused=True)
    reached = dict.fromkeys(key.split(".")[0] for key, grad in zip(others, grads, strict=True) if grad is not None)
    if reached:
        first = next(iter(reached))
        raise ValueError(
            f"model {name}: expected all that the objective depends on to be known to Pyro, got {', '.join(reached)} not, so "
            f'that it would stay as it was made; register it where it is used, by pyro.module("{first}", self.{first}) or '
            f'self._register("{first}"), or freeze it by requires_grad_(False).'
        )


def _others(parts: PyroModel, known: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The parameters that can be trained and are not known, by name."""
    return {name: p for name, p in parts.named_parameters() if p.requires_grad and id(p) not in known}
