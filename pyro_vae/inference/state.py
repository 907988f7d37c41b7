"""The saved state of a training run, checked before anything of it is used: it may come from another model or from anyone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: The keys of a training state and what they hold.
KEYS: dict[str, tuple[type, ...]] = {
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

#: The keys of what is kept of an epoch under way.
EPOCH_KEYS: dict[str, tuple[type, ...]] = {
    "start": (Tensor,),
    "totals": (Tensor,),
    "batches": (int,),
    "seen": (int,),
    "seconds": (float, int),
}


def check_state(state: Any, model: nn.Module, where: str) -> None:
    """Refuse a training state that is not whole or not that of a model.

    Args:
        state: What :meth:`Training.state_dict` gave, or what stands in its place.
        model: The model that shall have it.
        where: What the sentence begins with.

    Raises:
        ValueError: If something is missing, of another type, or of another shape than the model's.
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
            f"{where}: expected as many steps as its epochs have, got {state['step']} after {len(state['rows'])} epochs; "
            "train it again."
        )
    _check_optimizer(state["optimizer"], dict(model.named_parameters()), where)
    _check_generators(state, where)


def same_device(state: Mapping[str, Any], device: str) -> bool:
    """Whether a run goes on where it was begun; a warning says what follows if it does not."""
    if state["device"] == device:
        return True
    warnings.warn(
        f"resume: this run was begun on {state['device']} and goes on, on {device}, with other random numbers: it will not "
        "end as if it had never been stopped.",
        stacklevel=3,
    )
    return False


def same_ranks(begun: int, size: int) -> bool:
    """Whether a run goes on with as many processes as it had; a warning says what follows if it does not."""
    if begun == size:
        return True
    warnings.warn(
        f"resume: this run was begun by {begun} process{'es' if begun > 1 else ''} and goes on by {size}, with other random "
        "numbers: it will not end as if it had never been stopped.",
        stacklevel=3,
    )
    return False


def check_keys(values: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Refuse what is no dict with these keys and types.

    Raises:
        ValueError: If a key is missing or holds another type.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: expected a dict with {', '.join(keys)}, got {type(values).__name__}; train it again."
        )
    if missing := [key for key in keys if key not in values]:
        raise ValueError(f"{where}: expected a whole checkpoint, got one without {', '.join(missing)}; train it again.")
    for key, types in keys.items():
        if not isinstance(values[key], types):
            names = " or ".join("None" if t is type(None) else t.__name__ for t in types)
            raise ValueError(f"{where}: expected {names} as {key!r}, got {type(values[key]).__name__}; train it again.")


def check_parameters(found: Mapping[Any, Any], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse parameters of another architecture, naming the first that differs.

    Raises:
        ValueError: If a name or a shape differs.
    """
    mend = "take the version of pyro_vae that saved it, or train it again."
    for name, parameter in expected.items():
        got = found.get(name)
        if not isinstance(got, Tensor) or got.shape != parameter.shape:
            shape = f"one of shape {tuple(got.shape)}" if isinstance(got, Tensor) else "none"
            raise ValueError(
                f"{where}: expected the model's parameter {name!r} of shape {tuple(parameter.shape)}, got {shape}; {mend}"
            )
    if more := [str(name) for name in found if name not in expected]:
        raise ValueError(f"{where}: expected the model's parameters alone, got {more[0]!r} besides; {mend}")


def _check_rows(rows: list[Any], where: str) -> None:
    for number, row in enumerate(rows, start=1):
        numbers = isinstance(row, dict) and all(isinstance(value, (int, float)) for value in row.values())
        if not numbers or row.keys() != rows[0].keys() or row.get("epoch") != number or "step" not in row:
            raise ValueError(
                f"{where}: expected a row of numbers for epoch {number}, got something else; train it again."
            )


def _check_optimizer(optimizer: dict[Any, Any], parameters: dict[str, nn.Parameter], where: str) -> None:
    """Refuse moments of another shape than their parameter's: fused kernels would not look."""
    for name, one in optimizer.items():
        whole = name in parameters and isinstance(one, dict) and isinstance(one.get("state"), dict)
        if whole and isinstance(one.get("param_groups"), list):
            moments = [v for part in one["state"].values() if isinstance(part, dict) for v in part.values()]
            shapes = {v.shape for v in moments if isinstance(v, Tensor) and v.dim()}
            whole = shapes <= {parameters[name].shape}
        if not whole:
            raise ValueError(
                f"{where}: expected the optimizer's state of the model's parameters, got another for {name!r}; train it again."
            )


def _check_generators(state: Mapping[str, Any], where: str) -> None:
    like = torch.get_rng_state()
    found = {"random": state["random"]}
    if state["device"] == "cpu":
        found["order"] = state["order"]
        if state["epoch"] is not None:
            found["start"] = state["epoch"]["start"]
    for name, value in found.items():
        if (value.dtype, value.shape) != (like.dtype, like.shape):
            raise ValueError(
                f"{where}: expected the state of a generator as {name!r}, got another tensor; train it again."
            )
