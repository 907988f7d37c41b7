r"""One step of several processes, each with its rows of a batch.

The loss of the batch is

.. math:: L = \textstyle\sum_r w_r L_r

with :math:`w_r = 1` if the data plate is the batch (the loss is a sum over it), and :math:`w_r = b_r / B` if it
declares a full size N (each :math:`L_r` is scaled by :math:`N / b_r`).
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


#: On a GPU the host checks every so many steps if a rank has failed or was asked to stop; on a CPU at each step.
POLL_STEPS = 10


class Shared(NamedTuple):
    """A step of the whole batch.

    Attributes:
        terms: Loss, distortion and rate, 0-dim, nats.
        broken: 1 if the loss is not finite, else 0; 0-dim.
        grads: A gradient, or None, for each parameter.
    """

    terms: tuple[Tensor, Tensor, Tensor]
    broken: Tensor
    grads: list[Tensor | None]


class Exchange:
    """Adds up the loss, gradients and flags of all ranks.

    Args:
        module: The model; from here on its parameters and buffers are those of rank 0.
        interrupt: Returns True if this rank was asked to stop; called at each step.

    Attributes:
        stop: True if a rank was asked to stop.
        due: True if every rank synchronizes after this step.
        expecting: True if the current step is still to gather a mean, before it has a gradient.
        failure: The error in this rank's step, unless that is a non-finite number.
        plates: Returns the plates around all sites that the current evaluation has met.
        full_size: The size that the program declares for its data; None if it is that of the batch.

    Raises:
        ValueError: If the ranks have different parameters.
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
                "model: expected the same parameters on every rank, got others; give all the same command."
            )
        broadcast(state.values())

    def begin(self, total: int) -> None:
        """Begin a step with a batch of ``total`` data, over all ranks."""
        self.total, self.rows = total, world().rows(total)

    def see(self, params: Iterable[Tensor] = ()) -> None:
        """Read the size of the data from the plates around all sites.

        Args:
            params: The parameters that the program uses.

        Raises:
            ValueError: If no plate, or several of different sizes, hold the batch; or a parameter is not the module's.
        """
        if any(p.requires_grad and id(p) not in self._places for p in params):
            raise ValueError(
                "parameter: expected those of the model's modules, got one of pyro.param alone, which ranks do not share; "
                "make it an nn.Parameter or a PyroParam of the model."
            )
        local = max(self.rows, 1)
        found = {
            None if frame.full_size == local else frame.full_size
            for frame in self.plates().values()
            if local in (frame.size, frame.full_size)
        }
        if len(found) != 1:
            raise ValueError(
                f"data plate: expected one pyro.plate of the {local} data of a rank around all sites, got "
                f"{'several' if found else 'none'}; several processes can only share data in such a plate."
            )
        self.full_size = found.pop()

    @property
    def weight(self) -> float:
        """Factor w of this rank's loss in that of the batch."""
        if self.rows == 0:
            return 0.0
        return 1.0 if self.full_size is None else self.rows / self.total

    @property
    def num_data(self) -> int:
        """Number of data that the loss of the batch stands for."""
        return self.total if self.full_size is None else self.full_size

    def __call__(
        self,
        terms: Sequence[Tensor] | None = None,
        broken: Tensor | None = None,
        params: Sequence[Tensor] = (),
        grads: Sequence[Tensor | None] = (),
    ) -> Shared:
        """Sum over all ranks; a rank that has failed passes nothing.

        Raises:
            JobError: If a rank is gone.
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
        """Evaluate this rank's part; return None if that fails.

        The next exchange tells the other ranks.

        Args:
            evaluate: The part.
            *known: Errors that mean a non-finite loss.
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
        """After a broken step, return the first rank's non-finite site.

        This is a collective.

        Raises:
            Exception: The failure of a rank, if that broke the step.
        """
        with shared_errors():
            if self.failure is not None:
                raise self.failure
            found = find()
        return first_given(found)

    def mean(self, local: Tensor, scale: Tensor) -> Tensor:
        """See :func:`pyro_vae.parallel.shared_batch.batch_mean`."""
        self.see()
        self.expecting = False
        weight = self.weight * float(scale)
        found = [(part, w) for part, w in all_gather((local.detach().cpu().double(), weight)) if w]
        whole = torch.stack([part * w for part, w in found]).sum(0) / sum(w for _, w in found)
        return _Replaced.apply(local, whole.to(local))

    def compare(self, epoch: int) -> None:
        """Check that all ranks have equal parameters; share rank 0's buffers.

        This is a collective.

        Raises:
            JobError: If they have different parameters.
        """
        broadcast(self.module.buffers())
        sums = all_gather(checksum(self.module.parameters()))
        others = [str(rank) for rank, one in enumerate(sums) if one != sums[0]]
        if others:
            raise JobError(
                f"epoch {epoch}: expected the same parameters on every rank, got others on rank {', '.join(others)} than on "
                "rank 0; use processors that round alike, and the same parameters on all."
            )


class _Replaced(torch.autograd.Function):
    """Returns its second argument, with the gradient of the first."""

    @staticmethod
    def forward(_ctx: object, _local: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(_ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
