"""Data-parallel training and evaluation by the processes of a ``torchrun`` job.

A process that no launcher started is the only rank. The functions of this package then cost nothing.
"""

from pyro_vae.parallel.collectives import (
    JobError,
    all_gather,
    all_reduce_sum,
    broadcast,
    first_given,
    is_shared,
    local_batches,
    local_indices,
    local_main_first,
    merge_batches,
    set_device,
    share_error,
    shared_errors,
)
from pyro_vae.parallel.processes import (
    World,
    device_name,
    launcher_world,
    only_main_prints,
    process_group,
    stream_seed,
    world,
)

__all__ = [
    "JobError",
    "World",
    "all_gather",
    "all_reduce_sum",
    "broadcast",
    "device_name",
    "first_given",
    "is_shared",
    "launcher_world",
    "local_batches",
    "local_indices",
    "local_main_first",
    "merge_batches",
    "only_main_prints",
    "process_group",
    "set_device",
    "share_error",
    "shared_errors",
    "stream_seed",
    "world",
]
