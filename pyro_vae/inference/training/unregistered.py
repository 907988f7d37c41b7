"""Refuse trainable parameters that Pyro or a checkpoint would miss."""

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
    """After a training step, refuse trainable parameters that would not be trained.

    Args:
        model: The model.
        svi: The SVI that has taken the step.
        optimizer: The optimizer of ``svi``.
        batch: The batch of the step.

    Raises:
        ValueError: If the step updated no parameter, or if the loss depends on a trainable parameter that the optimizer
            does not know.
    """
    known = optimizer.source.optim_objs
    if not known and any(p.requires_grad for p in model.parameters()):
        raise ValueError(unregistered_message(type(model).__name__))
    pair = svi.model, svi.guide
    check_reached(type(model).__name__, model, svi.objective, pair, batch, {id(p): p for p in known})


def check_saved(model: PyroModel, optimizer: FusedOptim) -> None:
    """Refuse trained parameters that do not belong to the model.

    Only Pyro's parameter store holds these parameters, so a saved model would lack them.

    Raises:
        ValueError: If the optimizer has trained a parameter that does not belong to the model.
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
    """Refuse a model whose loss depends on parameters unknown to Pyro.

    The check changes no state.

    Frozen parameters are accepted. So are parameters on which the loss does not depend, such as those of a network used
    only for pictures.

    Args:
        name: Name of the model, for error messages.
        parts: The model, which holds the parameters.
        objective: The objective.
        pair: The model and guide functions that the objective evaluates.
        batch: A batch of data.
        known: The parameters registered with Pyro; the keys are the ids of the parameters. None: evaluate the objective
            once to find them.

    Raises:
        ValueError: If the loss depends on a trainable parameter that is not registered with Pyro.
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
            f'unregistered; in model or guide call pyro.module("{first}", self.{first}) or self._register("{first}"), or '
            f"freeze {first}."
        )


def _others(parts: PyroModel, known: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Return the trainable parameters not in ``known``; keys are parameter names."""
    return {name: p for name, p in parts.named_parameters() if p.requires_grad and id(p) not in known}
