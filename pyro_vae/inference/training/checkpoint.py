"""The state of a training: what a checkpoint holds, its checks, and its restoration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae import parallel
from pyro_vae.inference.training.history import Progress
from pyro_vae.models.protocol import PyroModel
from pyro_vae.system.randomness import device_state, set_device_state

if TYPE_CHECKING:
    from pyro_vae.inference.training.training import Training


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


def check_state(state: Any, model: PyroModel, where: str) -> None:
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


def state_of(training: Training) -> dict[str, Any]:
    """See :meth:`Training.state_dict`."""
    singles = training.optimizer.source.optim_objs
    random = {"random": torch.get_rng_state(), "random_device": device_state(training.device)}
    ranks = parallel.all_gather(random)
    return {
        "model": training.model.state_dict(),
        "best": training.best,
        "optimizer": {k: singles[p].state_dict() for k, p in training.model.named_parameters() if p in singles},
        "objective": training.svi.objective.state_dict() if hasattr(training.svi.objective, "state_dict") else None,
        "step": training.step,
        "rows": training.history.rows,
        "stop_reason": training.stop_reason,
        "compiled": training.svi.compiled,
        "device": training.device.type,
        **ranks[0],
        **({"ranks": ranks} if len(ranks) > 1 else {}),
        "order": training.order.get_state(),
        "epoch": None if training.progress is None else training.progress.state_dict(),
    }


def restore(training: Training, state: dict[str, Any]) -> None:
    """Put a checked state in place of that of a run; see :meth:`Training.load_state_dict`."""
    training.model.load_state_dict(state["model"])
    training.best = state["best"]
    for name, p in training.model.named_parameters():
        if name in state["optimizer"]:
            training.optimizer.add(p, state["optimizer"][name])
    if state["objective"] is not None:
        training.svi.objective.load_state_dict(state["objective"])
    training.svi.steps_taken = state["step"]
    if training.step > 0:
        training.betas.set(training.step - 1)
    training.history.rows = list(state["rows"])
    training.stop_reason = state["stop_reason"]
    ranks, world = state.get("ranks", [state]), parallel.world()
    same = same_device(state, training.device.type)
    if same_ranks(len(ranks), world.size) and same:
        torch.set_rng_state(ranks[world.rank]["random"].cpu())
        set_device_state(training.device, ranks[world.rank]["random_device"])
    else:
        torch.manual_seed(parallel.stream_seed(training.options.seed + training.step))
    if not same:
        training.order.manual_seed(training.options.seed + training.step)
    if state["epoch"] is not None:
        training.progress = _progress(training, state["epoch"], same)
    if same:
        training.order.set_state(state["order"].cpu())


def _progress(training: Training, kept: dict[str, Any], same: bool) -> Progress:
    """What has been done of the epoch under way, with its order drawn again: the same one, where it can be had."""
    batches, seen = kept["batches"], kept["seen"]
    whole = min(batches * training.options.batch_size, training.batches.order.total)
    if not (0 < batches <= training.steps_per_epoch and seen == whole):
        raise ValueError(f"{seen} data in {batches} steps of an epoch, where it would be {whole}")
    if same:
        training.order.set_state(kept["start"].cpu())
    progress = training.begin()
    progress.totals.copy_(kept["totals"])
    progress.batches, progress.seen, progress.seconds = batches, seen, float(kept["seconds"])
    return progress
