"""The rivals by name. Each one's file is imported when it is first asked for, so that no start pays for another's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.throughput.networks import NETWORKS

LR = 1e-3

#: Trains for a number of steps; gives the mean loss over them, nats per image.
Run = Callable[[int], float]


class UnavailableError(Exception):
    """This rival cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        network: A name from ``NETWORKS``.
        x: Images, shape ``(N, 784)``, on the device.
        batch_size: B.
        steps: Steps in a round.
        sizes: Keywords of the network.
        particles: K; above 1 the importance-weighted bound is trained.
    """

    network: str
    x: Tensor
    batch_size: int
    steps: int
    sizes: dict[str, int] = field(default_factory=dict)
    particles: int = 1

    def build(self) -> Any:
        """The network, with the same first weights each time."""
        torch.manual_seed(0)
        return NETWORKS[self.network](**self.sizes).to(self.x.device)


#: Name to words, module and function with its keywords.
RIVALS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "plain": ("plain PyTorch, in memory, fused Adam", "plain", "plain", {}),
    "plain-compiled": ("plain PyTorch + torch.compile", "plain", "plain", {"compiled": True}),
    "pytorch-example": ("PyTorch's example: DataLoader, ToTensor, Adam", "plain", "example", {}),
    "pyro": ("stock Pyro, in memory", "stock", "stock", {}),
    "pyro-unchecked": ("stock Pyro, in memory, validation off", "stock", "stock", {"checked": False}),
    "pyro-tutorial": ("Pyro's tutorial: DataLoader, ToTensor", "stock", "tutorial", {"transformed": True}),
    "pyro-example": ("Pyro's example: DataLoader over tensors", "stock", "tutorial", {"transformed": False}),
    "pythae": ("pythae's trainer, in memory", "pythae_trainer", "trainer", {}),
    "floor": ("floor: matrix products + fused Adam", "floor", "floor", {}),
    "eager": ("**ours**, eager", "ours", "ours", {}),
    "captured": ("**ours**, captured", "ours", "ours", {"compile": True}),
    "captured-bf16": ("**ours**, captured, bf16", "ours", "ours", {"compile": True, "precision": "bf16"}),
}

#: Those that train nothing.
UNTRAINED = {"floor"}


def words(name: str) -> str:
    """What a rival is called in tables."""
    return RIVALS[name][0]


def make(name: str, case: Case) -> Run:
    """A rival, ready to take its first step.

    Raises:
        UnavailableError: If it cannot run here.
    """
    _, module, function, keywords = RIVALS[name]
    return getattr(importlib.import_module(f"benchmarks.throughput.{module}"), function)(case, **keywords)
