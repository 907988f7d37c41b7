"""Training states: their keys, and functions to check and restore their parts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import parallel
from pyro_vae.inference.svi.optimizer import FusedOptim
from pyro_vae.models.protocol import PyroModel
from pyro_vae.system.randomness import device_state, set_device_state

#: A training state: plain containers, numbers and tensors.
State = dict[str, Any]
Types = Mapping[str, tuple[type, ...]]

#: The keys of a training state, and the types of their values.
KEYS: Types = {
    "model": (dict,),
    "best": (dict, type(None)),
    "optimizer": (dict,),
    "objective": (dict, type(None)),
    "step": (int,),
    "rows": (list,),
    "stop_reason": (str, type(None)),
    "compiled": (bool,),
    "device": (str,),
    "random": (Tensor,),
    "random_device": (Tensor, type(None)),
    "order": (Tensor,),
    "epoch": (dict, type(None)),
}


#: The keys of the state of an unfinished epoch.
EPOCH_KEYS: Types = {
    "start": (Tensor,),
    "totals": (Tensor,),
    "batches": (int,),
    "seen": (int,),
    "seconds": (float, int),
}


def check_state(state: State, model: PyroModel, where: str) -> None:
    """Refuse a training state that is incomplete or belongs to another model.

    Args:
        state: A state from :meth:`Training.state_dict`, or the unchecked content of a file.
        model: The model to restore.
        where: Text at the start of the error message.

    Raises:
        ValueError: If a part of the state is missing or has the wrong type, or if a tensor has another shape than in
            the model.
    """
    check_keys(state, KEYS, where)
    if state["epoch"] is not None:
        check_keys(state["epoch"], EPOCH_KEYS, f"{where}: epoch")
    for key in ("model", "best"):
        if state[key] is not None:
            check_parameters(state[key], model.state_dict(), where)
    _check_rows(state["rows"], where)
    batches = 0 if state["epoch"] is None else state["epoch"]["batches"]
    if state["step"] != (state["rows"][-1]["step"] if state["rows"] else 0) + batches:
        raise ValueError(
            f"{where}: expected as many steps as the epochs have, got {state['step']} after {len(state['rows'])} epochs; "
            "train the model again."
        )
    _check_optimizer(state["optimizer"], dict(model.named_parameters()), where)
    _check_generators(state, where)


def check_keys(values: object, keys: Types, where: str) -> None:
    """Check that ``values`` is a dict with the expected keys.

    Args:
        values: The value to check.
        keys: The type of the value at each expected key.
        where: Text at the start of the error message.

    Raises:
        ValueError: If ``values`` is not a dict, a key is missing, or a value has another type.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: expected a dict with {', '.join(keys)}, got {type(values).__name__}; train the model again."
        )
    if missing := [key for key in keys if key not in values]:
        raise ValueError(
            f"{where}: expected a complete checkpoint, got one without {', '.join(missing)}; train the model again."
        )
    for key, types in keys.items():
        if not isinstance(values[key], types):
            names = " or ".join("None" if t is type(None) else t.__name__ for t in types)
            got = type(values[key]).__name__
            raise ValueError(f"{where}: expected {names} under the key {key!r}, got {got}; train the model again.")


def check_parameters(given: Mapping[str, object], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse parameters of another architecture; the error names the first difference.

    Raises:
        ValueError: If the name or shape of a parameter differs.
    """
    remedy = "use the version of pyro_vae that saved the model, or train the model again."
    for name, parameter in expected.items():
        got = given.get(name)
        if not isinstance(got, Tensor) or got.shape != parameter.shape:
            shape = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else "none"
            raise ValueError(
                f"{where}: expected the model's parameter {name!r} of shape {tuple(parameter.shape)}, got {shape}; {remedy}"
            )
    if more := [str(name) for name in given if name not in expected]:
        raise ValueError(f"{where}: expected only the model's parameters, got {more[0]!r} as well; {remedy}")


def _check_rows(rows: list[State], where: str) -> None:
    for number, row in enumerate(rows, start=1):
        numbers = isinstance(row, dict) and all(isinstance(value, (int, float)) for value in row.values())
        if not numbers or row.keys() != rows[0].keys() or row.get("epoch") != number or "step" not in row:
            raise ValueError(
                f"{where}: expected a row of numbers for epoch {number}, got something else; train the model again."
            )


def _check_optimizer(optimizer: State, parameters: dict[str, nn.Parameter], where: str) -> None:
    """Refuse optimizer moments with another shape than their parameter.

    Fused kernels would not detect the difference.
    """
    for name, one in optimizer.items():
        whole = name in parameters and isinstance(one, dict) and isinstance(one.get("state"), dict)
        if whole and isinstance(one.get("param_groups"), list):
            moments = [v for part in one["state"].values() if isinstance(part, dict) for v in part.values()]
            shapes = {v.shape for v in moments if isinstance(v, Tensor) and v.dim()}
            whole = shapes <= {parameters[name].shape}
        if not whole:
            raise ValueError(
                f"{where}: expected an optimizer state that fits the model's parameters, got another for {name!r}; train the "
                "model again."
            )


def _check_generators(state: State, where: str) -> None:
    like = torch.get_rng_state()
    generators = {"random": state["random"]}
    if state["device"] == "cpu":
        generators["order"] = state["order"]
        if state["epoch"] is not None:
            generators["start"] = state["epoch"]["start"]
    for name, value in generators.items():
        if (value.dtype, value.shape) != (like.dtype, like.shape):
            raise ValueError(
                f"{where}: expected the state of a random generator under the key {name!r}, got another tensor; train the "
                "model again."
            )


def check_epoch(state: State, batch_size: int, total: int) -> None:
    """Refuse an epoch's state from a run with other batches or data.

    Args:
        state: The state of the unfinished epoch.
        batch_size: Batch size of this run.
        total: Number of data in an epoch of this run.

    Raises:
        ValueError: If the state's number of data seen does not fit its number of training steps.
    """
    batches, seen = state["batches"], state["seen"]
    whole = min(batches * batch_size, total)
    if not (0 < batches <= -(-total // batch_size) and seen == whole):
        raise ValueError(f"expected {whole} data in {batches} steps of an epoch, got {seen}")


def optimizer_state(model: PyroModel, optimizer: FusedOptim) -> State:
    """Return the optimizer state of each parameter; keys are parameter names."""
    singles = optimizer.source.optim_objs
    return {name: singles[p].state_dict() for name, p in model.named_parameters() if p in singles}


def restore_optimizer(model: PyroModel, optimizer: FusedOptim, state: State) -> None:
    """Restore a state returned by :func:`optimizer_state`."""
    for name, p in model.named_parameters():
        if name in state:
            optimizer.add(p, state[name])


def random_state(device: torch.device) -> State:
    """Return the states of the random generators of all processes.

    Collective: all processes must call this function.
    """
    ranks = parallel.all_gather({"random": torch.get_rng_state(), "random_device": device_state(device)})
    return {**ranks[0], **({"ranks": ranks} if len(ranks) > 1 else {})}


def restore_random_state(state: State, device: torch.device, order: torch.Generator, seed: int) -> bool:
    """Restore the states that :func:`random_state` returned, if possible.

    On another device, or with another number of processes, the states cannot be restored. The generators are then
    seeded, and a warning says that the run does not continue exactly.

    Args:
        state: A training state.
        device: The device of the training.
        order: Generator of the data order. It is seeded if the run continues on another device, and otherwise left
            unchanged.
        seed: Seed of the generators if the run continues on another device or with another number of processes.

    Returns:
        True if the run continues on the kind of device on which it began.
    """
    ranks, world = state.get("ranks", [state]), parallel.world()
    same = _same_device(state["device"], device.type)
    if _same_ranks(len(ranks), world.size) and same:
        torch.set_rng_state(ranks[world.rank]["random"].cpu())
        set_device_state(device, ranks[world.rank]["random_device"])
    else:
        torch.manual_seed(parallel.stream_seed(seed))
    if not same:
        order.manual_seed(seed)
    return same


def _same_device(begun: str, device: str) -> bool:
    if begun == device:
        return True
    warnings.warn(
        f"resume: this run began on {begun} and continues on {device}, with other random numbers; the result will differ from "
        "that of an uninterrupted run.",
        stacklevel=3,
    )
    return False


def _same_ranks(begun: int, size: int) -> bool:
    if begun == size:
        return True
    warnings.warn(
        f"resume: this run began with {begun} process{'es' if begun > 1 else ''} and continues with {size}, with other random "
        "numbers; the result will differ from that of an uninterrupted run.",
        stacklevel=3,
    )
    return False
