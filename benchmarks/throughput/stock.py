"""Pyro as it is: ``pyro.infer.SVI``, ``pyro.optim.Adam``, ``Trace_ELBO``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import pyro
import pyro.optim
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.throughput.images import batches, loaded
from benchmarks.throughput.programs import program
from benchmarks.throughput.rivals import LR, Case, Run, UnavailableError


class UncheckedDistributions:
    """Arguments of distributions go unchecked, as Pyro's tutorial has it."""

    def __enter__(self) -> None:
        self._before = Distribution._validate_args
        pyro.distributions.enable_validation(False)

    def __exit__(self, *_: Any) -> None:
        pyro.distributions.enable_validation(self._before)


def stock(case: Case, *, checked: bool = True) -> Run:
    """Data in memory; ``checked``: with the validation that Pyro comes with."""
    net = case.build()
    stream = batches(case.x, case.batch_size, net.data_shape)
    return _run(case, net, stream, nullcontext() if checked else None)


def tutorial(case: Case, *, transformed: bool) -> Run:
    """Through a ``DataLoader``: of PIL images, as Pyro's VAE tutorial does, or of tensors, as its VAE example does."""
    net = case.build()
    stream = loaded(case.x, case.batch_size, net.data_shape, transformed)
    return _run(case, net, stream, UncheckedDistributions() if transformed else nullcontext())


def _run(case: Case, net: Any, stream: Iterator[Tensor], around: AbstractContextManager[Any] | None) -> Run:
    if case.particles > 1:
        raise UnavailableError("stock Pyro trains with one draw here")
    model, guide = program(net)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())

    def run(steps: int) -> float:
        with pyro.validation_enabled(False) if around is None else around:
            return sum(svi.step(x) for x in islice(stream, steps)) / (steps * case.batch_size)

    return run
