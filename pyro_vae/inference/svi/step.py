"""One evaluation of a loss: gradients, clipping, check for non-finite values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.program.parameters import Used, UsedData
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.svi.data_parallel import Exchange
from pyro_vae.inference.svi.precision import PRECISIONS
from pyro_vae.lookup import lookup
from pyro_vae.registration import Recorder


class Evaluated(NamedTuple):
    """The results of one evaluation of the loss and its gradients.

    Attributes:
        terms: Loss, distortion and rate, detached; see :class:`Terms`.
        broken: 1 if the loss is not finite, or, with clipping, if the gradient is not finite; else 0. A 0-dim float32
            tensor on the device.
        params: The parameters that the evaluation used, in the order of their first use.
        grads: The gradient of each of ``params``, or None for a parameter without a gradient.
    """

    terms: Terms
    broken: Tensor
    params: list[Tensor]
    grads: list[Tensor | None]


class Evaluation:
    """Evaluates an objective and its gradients without waiting for the device.

    Args:
        objective: An objective of :func:`pyro_vae.elbo`, or a function ``loss(model, guide, *args)``.
        clip_norm: See :class:`pyro_vae.SVI`.
        precision: See :class:`pyro_vae.SVI`.

    Attributes:
        exchange: Sums loss and gradients over several processes; None with one process.

    Raises:
        ValueError: If ``precision`` is unknown.
    """

    def __init__(self, objective: ELBO, clip_norm: float | None, precision: str) -> None:
        self.objective, self.clip_norm = objective, clip_norm
        self.exchange: Exchange | None = None
        self._modules = Recorder()
        self._used = Used if clip_norm is None else UsedData
        self._networks = lookup("precision", precision, PRECISIONS)

    def share(self, exchange: Exchange) -> None:
        """From now on, evaluate only this process's rows of each batch."""
        self.exchange, self._used = exchange, UsedData

    def __call__(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Evaluated:
        """Evaluate loss and gradients; leave ``grad`` of the parameters unchanged."""
        with self.recording() as (used, seen):
            if hasattr(self.objective, "terms"):
                terms = self.objective.terms(model, guide, *args, **kwargs)
            else:
                loss = self.objective(model, guide, *args, **kwargs)
                terms = Terms(loss, torch.zeros_like(loss), torch.zeros_like(loss))
        params = [p for p in used.values() if p.requires_grad]
        loss = terms.loss
        grads: list[Tensor | None] = [None] * len(params)
        if loss.requires_grad and params:
            grads = [*torch.autograd.grad(loss, params, allow_unused=True)]
        finite = torch.isfinite(loss.detach())
        if self.exchange is not None:
            self.exchange.see(params)
        elif self.clip_norm is not None:
            small, grads = clipped(grads, self.clip_norm * seen.num_data)
            finite = finite & small
        return Evaluated(Terms(*(part.detach() for part in terms)), (~finite).float(), params, grads)

    def tensors(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Evaluated:
        """Do the same as ``__call__``, but take ``*args`` and ``**kwargs``."""
        return self(model, guide, args, kwargs)

    def backward(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """Evaluate the objective; add the gradients of the loss to ``grad``."""
        terms = self.objective.terms(model, guide, *args, **kwargs)
        if terms.loss.requires_grad:
            terms.loss.backward()
        return Terms(terms.loss.detach(), terms.distortion, terms.rate)

    @contextmanager
    def recording(self) -> Iterator[tuple[dict[int, Tensor], Used]]:
        """Record the parameters used inside the block; apply the chosen precision."""
        # Pyro's own objectives read param sites before the backward pass; ours do not need param sites.
        listening = self._modules.recording() if hasattr(self.objective, "terms") else nullcontext()
        used = self._modules.begin()
        with listening, self._used(used) as seen, self._networks():
            if self.exchange is not None:
                self.exchange.plates = lambda: seen.plates
            yield used, seen

    def exchanged(self, part: Evaluated | None, exchange: Exchange, earlier: Tensor | None) -> Evaluated:
        """Sum the evaluations of all processes.

        Args:
            part: The evaluation of this process, or None if it failed.
            exchange: Computes the sums over all processes.
            earlier: 1 if an earlier step was broken, 0 or None if not.
        """
        terms, broken, grads = exchange() if part is None else exchange(*part)
        if self.clip_norm is not None:
            finite, grads = clipped(grads, self.clip_norm * exchange.num_data)
            broken = torch.maximum(broken, (~finite).float())
        if earlier is not None:
            broken = torch.maximum(broken, earlier)
        return Evaluated(Terms(*terms), broken, [] if part is None else part.params, grads)


def clipped(grads: list[Tensor | None], most: float) -> tuple[Tensor, list[Tensor | None]]:
    """Scale a gradient down so that its norm is at most ``most``.

    Returns:
        A 0-dim bool tensor, True if the norm before scaling is finite; and the scaled gradient.
    """
    norm = torch.nn.utils.get_total_norm([g for g in grads if g is not None])
    share = (most / (norm + 1e-6)).clamp(max=1.0)
    return torch.isfinite(norm), [g if g is None else g * share for g in grads]


def clear(params: Iterable[Tensor]) -> None:
    """Set ``grad`` of the parameters to None."""
    for p in params:
        p.grad = None
