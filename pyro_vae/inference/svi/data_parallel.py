r"""Data-parallel training steps: each process takes some rows of a batch.

The process with rank r has :math:`b_r` of the B rows of the batch, and computes the loss :math:`L_r` of these rows. The
loss of the batch is

.. math:: L = \textstyle\sum_r w_r L_r

If the data plate has the size of the batch, the loss is a sum over the batch and :math:`w_r = 1`. If the data plate
declares a full size N, each :math:`L_r` is scaled by :math:`N / b_r` and :math:`w_r = b_r / B`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.models.protocol import PyroModel
from pyro_vae.parallel import (
    JobError,
    all_gather,
    all_reduce_sum,
    broadcast,
    first_given,
    is_shared,
    share_error,
    shared_errors,
    world,
)
from pyro_vae.system.checksum import checksum

T = TypeVar("T")


#: On a GPU, the host checks once in this number of training steps if a rank has failed or was asked to stop. On a CPU, it
#: checks at each step.
POLL_STEPS = 10


class Shared(NamedTuple):
    """Loss and gradients of the whole batch, summed over all ranks.

    Attributes:
        terms: Loss, distortion and rate, 0-dim, nats.
        broken: 1 if the loss is not finite, else 0; 0-dim.
        grads: The gradient of each parameter, or None for a parameter without a gradient.
    """

    terms: tuple[Tensor, Tensor, Tensor]
    broken: Tensor
    grads: list[Tensor | None]


class Exchange:
    """Sums loss, gradients and flags over all ranks of a job.

    Args:
        module: The model. The parameters and buffers of rank 0 replace those of every other rank.
        interrupt: Function that returns True if this rank was asked to stop; called at each training step.

    Attributes:
        stop: True if any rank was asked to stop.
        due: True if all ranks must synchronize after the current step.
        expecting: True if the other ranks still wait in this step for this rank's part of a mean over the batch.
        failure: The error that this rank's current step raised, or None. A non-finite loss is not a failure.
        plates: Function that returns the plates that enclose every site of the current evaluation.
        full_size: Full size that the program declares for the data plate; None if the program declares the batch size.

    Raises:
        ValueError: If names, shapes or types of parameters differ between ranks.
    """

    HEAD = 5  # loss, distortion, rate, broken, stop; then the gradients

    def __init__(self, module: PyroModel, interrupt: Callable[[], bool]) -> None:
        self.module, self.interrupt = module, interrupt
        self.stop = self.due = self.expecting = False
        self.failure: Exception | None = None
        self.plates: Callable[[], Mapping[str, CondIndepStackFrame]] = dict
        self.full_size: int | None = None
        self.begin(1)
        self._steps = 0
        learning = [p for p in module.parameters() if p.requires_grad]
        ends = [*itertools.accumulate((p.numel() for p in learning), initial=self.HEAD)]
        self._places = {id(p): slice(*pair) for p, pair in zip(learning, itertools.pairwise(ends), strict=True)}
        dtype = torch.float32
        for p in learning:
            dtype = torch.promote_types(dtype, p.dtype)
        self.device = learning[0].device if learning else torch.device("cpu")
        self._flat = torch.zeros(ends[-1], dtype=dtype, device=self.device)
        state = module.state_dict()
        described = {name: (tuple(value.shape), str(value.dtype)) for name, value in state.items()}
        if any(other != described for other in all_gather(described)):
            raise ValueError(
                "model: expected parameters of the same names, shapes and types on every rank, got different ones; start every "
                "rank with the same command."
            )
        broadcast(state.values())

    def begin(self, total: int) -> None:
        """Begin a training step in which all ranks together use ``total`` data."""
        self.total, self.rows = total, world().rows(total)

    def see(self, params: Iterable[Tensor] = ()) -> None:
        """Read the data plate's full size from the plates around all sites.

        Args:
            params: The parameters that the program uses.

        Raises:
            ValueError: If no plate holds the batch, plates of different sizes hold the batch, or a parameter does not belong
                to the module.
        """
        if any(p.requires_grad and id(p) not in self._places for p in params):
            raise ValueError(
                "parameter: expected parameters of the model's modules, got one made by pyro.param, which ranks do not share; "
                "use an nn.Parameter or a PyroParam of the model."
            )
        local = max(self.rows, 1)
        found = {
            None if frame.full_size == local else frame.full_size
            for frame in self.plates().values()
            if local in (frame.size, frame.full_size)
        }
        if len(found) != 1:
            raise ValueError(
                f"data plate: expected one pyro.plate of size {local}, the batch of a rank, around all sites, got "
                f"{'several' if found else 'none'}; several processes can share data only in such a plate."
            )
        self.full_size = found.pop()

    @property
    def weight(self) -> float:
        """Weight w of this rank's loss in the loss of the batch."""
        if self.rows == 0:
            return 0.0
        return 1.0 if self.full_size is None else self.rows / self.total

    @property
    def num_data(self) -> int:
        """Number of data that the loss of the batch represents."""
        return self.total if self.full_size is None else self.full_size

    def __call__(
        self,
        terms: Sequence[Tensor] | None = None,
        broken: Tensor | None = None,
        params: Sequence[Tensor] = (),
        grads: Sequence[Tensor | None] = (),
    ) -> Shared:
        """Sum loss, gradients and flags over all ranks.

        A rank that could not evaluate its part calls this method without arguments.

        Raises:
            JobError: If the process of another rank has ended.
        """
        flat = self._flat.zero_()
        if terms is None or broken is None:
            flat[:4] = torch.tensor([math.nan, math.nan, math.nan, 1.0])
        elif self.rows:
            self._pack(flat, terms, broken, params, grads)
        flat[4] = float(self.interrupt())
        all_reduce_sum(flat)
        self._steps += 1
        self.due = flat.device.type == "cpu" or self._steps % POLL_STEPS == 0
        if self.due:
            self.stop = self.stop or bool(flat[4] > 0)
        loss, distortion, rate, bad = (part.clone() for part in flat[:4])
        whole = [
            None if g is None else flat[self._places[id(p)]].view_as(p).to(p.dtype)
            for p, g in zip(params, grads, strict=True)
        ]
        return Shared((loss, distortion, rate), ((bad > 0) | ~torch.isfinite(loss)).float(), whole)

    def _pack(
        self,
        flat: Tensor,
        terms: Sequence[Tensor],
        broken: Tensor,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
    ) -> None:
        for p, g in zip(params, grads, strict=True):
            if g is not None:
                flat[self._places[id(p)]].copy_(g.reshape(-1))
        flat[0], flat[1], flat[2] = terms
        if self.weight != 1:
            flat[0] *= self.weight
            flat[self.HEAD :] *= self.weight
        flat[3] = broken

    def attempt(self, evaluate: Callable[[], T], *known: type[Exception]) -> T | None:
        """Evaluate this rank's part of a step; return None if this fails.

        The next exchange reports the failure to the other ranks.

        Args:
            evaluate: Function that evaluates this rank's part.
            *known: Types of errors that report a non-finite loss and are not failures.
        """
        try:
            return evaluate()
        except JobError:
            raise
        except Exception as error:
            if is_shared(error):
                raise
            if self.expecting:
                share_error(error)
                raise
            self.failure = None if isinstance(error, known) else error
            return None

    def blame(self, find: Callable[[], str | None]) -> str | None:
        """Return the non-finite site of a broken step.

        The lowest rank that found such a site decides.

        Collective: all ranks must call this method.

        Raises:
            Exception: The error of a rank, if the step is broken because of an error and not of a non-finite loss.
        """
        with shared_errors():
            if self.failure is not None:
                raise self.failure
            found = find()
        return first_given(found)

    def mean(self, local: Tensor, scale: Tensor) -> Tensor:
        """Return the mean over the rows of all ranks.

        See :func:`pyro_vae.parallel.shared_batch.batch_mean`.
        """
        self.see()
        self.expecting = False
        weight = self.weight * float(scale)
        found = [(part, w) for part, w in all_gather((local.detach().cpu().double(), weight)) if w]
        whole = torch.stack([part * w for part, w in found]).sum(0) / sum(w for _, w in found)
        return _Replaced.apply(local, whole.to(local))

    def compare(self, epoch: int) -> None:
        """Check that all ranks have equal parameters; copy rank 0's buffers.

        Collective: all ranks must call this method.

        Raises:
            JobError: If parameters differ between ranks.
        """
        broadcast(self.module.buffers())
        sums = all_gather(checksum(self.module.parameters()))
        others = [str(rank) for rank, one in enumerate(sums) if one != sums[0]]
        if others:
            raise JobError(
                f"epoch {epoch}: expected the same parameters on every rank, got a difference between rank 0 and rank "
                f"{', '.join(others)}; use processors that round alike, and the same parameters on all ranks."
            )


class _Replaced(torch.autograd.Function):
    """Function of two tensors: value of the second, gradient of the first."""

    @staticmethod
    def forward(_ctx: object, _local: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(_ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
