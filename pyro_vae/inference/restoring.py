"""What a training run saves to go on exactly, and how it goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pyro_vae import parallel
from pyro_vae.inference.history import Progress
from pyro_vae.inference.state import same_device, same_ranks
from pyro_vae.randomness import device_state, set_device_state

if TYPE_CHECKING:
    from pyro_vae.inference.training import Training


def state_of(training: Training) -> dict[str, Any]:
    """See :meth:`Training.state_dict`."""
    singles = training.optimizer.source.optim_objs
    random = {"random": torch.get_rng_state(), "random_device": device_state(training.device)}
    ranks = parallel.gather(random)
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
        torch.manual_seed(parallel.stream(training.options.seed + training.step))
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
