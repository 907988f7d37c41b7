"""Loops of plain PyTorch."""

from __future__ import annotations

from itertools import islice

import torch

from benchmarks.throughput.images import batches, loaded
from benchmarks.throughput.rivals import LR, Case, Run, UnavailableError


def plain(case: Case, *, compiled: bool = False) -> Run:
    """Data in memory, one fused Adam, no waiting for the loss; ``compiled``: forward and backward by ``torch.compile``."""
    if case.particles > 1:
        raise UnavailableError("the plain loop trains with one draw")
    net = case.build()
    loss_of = torch.compile(net, dynamic=False) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    stream = batches(case.x, case.batch_size, net.data_shape)

    def run(steps: int) -> float:
        total = torch.zeros((), device=case.x.device)
        for x in islice(stream, steps):
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        return total.item() / (steps * case.batch_size)

    return run


def example(case: Case) -> Run:
    """As PyTorch's VAE example: PIL images through ``ToTensor``, Adam as it comes, the loss read at each step."""
    net = case.build()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    stream = loaded(case.x, case.batch_size, net.data_shape, transformed=True)

    def run(steps: int) -> float:
        total = 0.0
        for x in islice(stream, steps):
            optimizer.zero_grad()
            loss = net(x)
            loss.backward()
            total += loss.item()
            optimizer.step()
        return total / (steps * case.batch_size)

    return run
