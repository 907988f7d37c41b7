"""Refuse trainable parameters that Pyro, or a checkpoint, does not know."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.parameters import Used
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.svi.optimizer import FusedOptim
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.models.checks import unregistered_message, unsaved_message
from pyro_vae.models.protocol import PyroModel


def check_trained(model: PyroModel, svi: SVI, optimizer: FusedOptim, batch: tuple[Tensor, ...]) -> None:
    """After a step, refuse parameters that no step would move.

    Args:
        model: The model.
        svi: Has taken the step.
        optimizer: Its optimizer.
        batch: The batch of the step.

    Raises:
        ValueError: If no parameter took part in the step, or the loss depends on others that did not.
    """
    known = optimizer.source.optim_objs
    if not known and any(p.requires_grad for p in model.parameters()):
        raise ValueError(unregistered_message(type(model).__name__))
    pair = svi.model, svi.guide
    check_reached(type(model).__name__, model, svi.objective, pair, batch, {id(p): p for p in known})


def check_saved(model: PyroModel, optimizer: FusedOptim) -> None:
    """Refuse trained tensors that are not the model's.

    They would be lost with the parameter store.

    Raises:
        ValueError: If there are any.
    """
    own = {id(p) for p in model.parameters()}
    store = pyro.get_param_store()
    for p in optimizer.source.optim_objs:
        if id(p) not in own:
            raise ValueError(unsaved_message(store.param_name(p)))


def check_reached(
    name: str,
    parts: PyroModel,
    objective: ELBO,
    pair: tuple[Program, Program],
    batch: tuple[Tensor, ...],
    known: Mapping[int, Tensor] | None = None,
) -> None:
    """Refuse a model with unregistered parameters that have a gradient; alter nothing.

    Parameters without a gradient, such as those of a network for pictures alone, are accepted, and so are frozen ones.

    Args:
        name: The name of the model, for errors.
        parts: The model, which holds the parameters.
        objective: The objective.
        pair: Model and guide, as the objective takes them.
        batch: Some data.
        known: Parameters that Pyro knows, by id; None: those that it meets here.

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
            f"model {name}: expected every part that the objective uses to be registered with Pyro, got {', '.join(reached)} "
            f'unregistered; call pyro.module("{first}", self.{first}) or self._register("{first}") there, or freeze it.'
        )


def _others(parts: PyroModel, known: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Return the trainable parameters that are not known, by name."""
    return {name: p for name, p in parts.named_parameters() if p.requires_grad and id(p) not in known}
