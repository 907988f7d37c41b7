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
    """After a training step, refuse trainable parameters that no step moves.

    Args:
        model: The model.
        svi: The SVI that has taken the step.
        optimizer: The optimizer of ``svi``.
        batch: The batch of the step.

    Raises:
        ValueError: If the step moved no parameter, or the loss depends on a parameter that the optimizer does not know.
    """
    known = optimizer.source.optim_objs
    if not known and any(p.requires_grad for p in model.parameters()):
        raise ValueError(unregistered_message(type(model).__name__))
    pair = svi.model, svi.guide
    check_reached(type(model).__name__, model, svi.objective, pair, batch, {id(p): p for p in known})


def check_saved(model: PyroModel, optimizer: FusedOptim) -> None:
    """Refuse trained parameters that do not belong to the model.

    Such parameters would be lost together with the parameter store.

    Raises:
        ValueError: If there is such a parameter.
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

    Frozen parameters are accepted, and so are parameters without a gradient, such as those of a network only for pictures.

    Args:
        name: Name of the model, for error messages.
        parts: The model, which holds the parameters.
        objective: The objective.
        pair: Model and guide, as the objective takes them.
        batch: A batch of data.
        known: Parameters registered with Pyro, by id; None: find the registered parameters by an evaluation.

    Raises:
        ValueError: If there is an unregistered parameter with a gradient.
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
    """Return the trainable parameters that are not in ``known``, by name."""
    return {name: p for name, p in parts.named_parameters() if p.requires_grad and id(p) not in known}
