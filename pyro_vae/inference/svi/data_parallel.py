r"""One step of several processes, each with its rows of a batch: the loss of the whole and its gradient.

.. math:: L = \textstyle\sum_r w_r L_r

with :math:`w_r = 1` where the data plate is the batch (the loss is a sum over it), and :math:`w_r = b_r / B` where it
declares a full size N (each :math:`L_r` is scaled by :math:`N / b_r`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
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


#: On a GPU, every so many steps the host reads whether a rank has broken down or was asked to stop; on a CPU at each.
POLL_STEPS = 10


class Shared(NamedTuple):
    """A step of the whole batch: loss, distortion and rate, 0-dim, nats; 1 where it is broken, else 0; gradients."""

    terms: tuple[Tensor, Tensor, Tensor]
    broken: Tensor
    grads: list[Tensor | None]


class Exchange:
    """What the ranks exchange in a step: one sum over all, of gradients, loss, and whether one has broken or must stop.

    Args:
        module: What is trained; its parameters and buffers are those of rank 0 from here on.
        interrupt: Asked at each step whether this rank was asked to stop.

    Attributes:
        stop: Whether a rank was asked to stop.
        due: Whether at this step every rank looks at what has come.
        expecting: Whether the step under way gathers a mean before it has a gradient, and has not done so yet.
        failure: What broke this rank's step, if anything but a number that is not finite.
        plates: Gives the plates around all sites that the evaluation under way has met.
        full_size: The size that the program declares for its data; None where it is that of the batch.

    Raises:
        ValueError: If the ranks have other parameters.
    """

    HEAD = 5  # loss, distortion, rate, broken, stop; then the gradients

    def __init__(self, module: PyroModel, interrupt: Callable[[], bool]) -> None:
        self.module, self.interrupt = module, interrupt
        self.stop = self.due = self.expecting = False
        self.failure: Exception | None = None
        self.plates: Callable[[], Mapping[str, Any]] = dict
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
        """The next step has a batch of ``total`` data, over all ranks."""
        self.total, self.rows = total, world().rows(total)

    def see(self, params: Iterable[Tensor] = ()) -> None:
        """Take from the plates around all sites of the program for what its loss stands.

        Args:
            params: The parameters that it uses.

        Raises:
            ValueError: If none of the plates, or several at odds, holds the batch; or a parameter is none of the module's.
        """
        if any(p.requires_grad and id(p) not in self._places for p in params):
            raise ValueError(
                "parameter: expected those of the model's modules, got one of pyro.param alone, which ranks do not share; make "
                "it an nn.Parameter or a PyroParam of the model."
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
                f"{'several' if found else 'none'}; several processes can only share data that lie in such a plate."
            )
        self.full_size = found.pop()

    @property
    def weight(self) -> float:
        """w: the factor of this rank's loss in that of the batch."""
        if self.rows == 0:
            return 0.0
        return 1.0 if self.full_size is None else self.rows / self.total

    @property
    def num_data(self) -> int:
        """For how many data the loss of the batch stands."""
        return self.total if self.full_size is None else self.full_size

    def __call__(
        self,
        terms: Sequence[Tensor] | None = None,
        broken: Tensor | None = None,
        params: Sequence[Tensor] = (),
        grads: Sequence[Tensor | None] = (),
    ) -> Shared:
        """Sum over all ranks; a rank that has failed gives nothing.

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
        """Evaluate this rank's part; None where that failed, which the others hear of by the exchange that follows.

        Args:
            evaluate: The part.
            *known: Errors that need no more words than that the loss is not finite.
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
        """After a step that was broken: which site is to blame, on the first rank that finds one; a collective.

        Raises:
            Exception: The failure of a rank, where that is what broke it.
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
        """See that all ranks have the same parameters, and give them rank 0's buffers; a collective.

        Raises:
            JobError: If they have not.
        """
        broadcast(self.module.buffers())
        sums = all_gather(checksum(self.module.parameters()))
        others = [str(rank) for rank, one in enumerate(sums) if one != sums[0]]
        if others:
            raise JobError(
                f"epoch {epoch}: expected the same parameters on every rank, got others on rank {', '.join(others)} than on "
                "rank 0: processors that round differently, or a program that uses other parameters on some ranks."
            )


class _Replaced(torch.autograd.Function):
    """The second value, with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
