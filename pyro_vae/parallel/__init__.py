"""Several processes that train or evaluate as one, started by ``torchrun``: who they are, and what they tell each other.

In a process that no launcher has started there is one rank, and nothing here costs anything.
"""

from pyro_vae.parallel.collectives import (
    JobError,
    add_up,
    collected,
    dealt,
    first,
    from_main,
    gather,
    one_first,
    take_device,
    tell,
    together,
    told,
    turns,
)
from pyro_vae.parallel.processes import World, device_name, joined, launched, one_voice, stream, world

__all__ = [
    "JobError",
    "World",
    "add_up",
    "collected",
    "dealt",
    "device_name",
    "first",
    "from_main",
    "gather",
    "joined",
    "launched",
    "one_first",
    "one_voice",
    "stream",
    "take_device",
    "tell",
    "together",
    "told",
    "turns",
    "world",
]
