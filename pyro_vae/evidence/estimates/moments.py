"""What an estimate needs of the log weights, gathered chunk by chunk, in memory that does not grow with their number."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from pyro_vae.evidence.estimates.pareto import tail_length

#: Blocks of draws that the jackknife leaves out one by one: its error is then known to 10 %.
JACKKNIFE_BLOCKS = 50
#: Rows that are gathered before they are reduced, at least.
_GATHERED = 256


class Moments:
    r"""The log weights of B data over K draws, reduced as they come; float64.

    Kept for each datum: mean and second moment of w, relative to the largest so far; mean and variance of log w; rate and
    distortion; the :math:`3 \sqrt K` largest weights, and the sum of the others; the sum over each of the jackknife's
    blocks. How the draws are cut into chunks changes them by rounding only.

    Args:
        num_samples: K, over all chunks.
        num_data: B.

    Raises:
        ValueError: If one is below 1.

    References:
        Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983, eq. 2.1.
    """

    def __init__(self, num_samples: int, num_data: int) -> None:
        if num_samples < 1 or num_data < 1:
            raise ValueError(f"moments: expected at least one draw and one datum, got {num_samples} and {num_data}.")
        self.num_samples, self.num_data, self.done = num_samples, num_data, 0
        self.num_blocks = min(num_samples, JACKKNIFE_BLOCKS)
        self._gathered: list[tuple[Tensor, Tensor, Tensor]] = []
        self._rows = 0
        self._state: _State | None = None

    def add(self, log_likelihood: Tensor, log_ratio: Tensor, log_w: Tensor | None = None) -> None:
        """Take the next draws.

        Args:
            log_likelihood: log p(x|z), shape ``(k, B)``, nats, in the dtype in which it was computed.
            log_ratio: log p(z) - log q(z|x), likewise.
            log_w: Log weights, where they are not the sum of the two (an enumerated site: the two are then means over its
                values under q, the weight is their sum).

        Raises:
            ValueError: If a weight is NaN, or there are more draws than was said.
        """
        log_w = log_likelihood + log_ratio if log_w is None else log_w
        if self.done + self._rows + len(log_w) > self.num_samples:
            raise ValueError(f"log weights: expected {self.num_samples} draws, got more.")
        self._gathered.append((log_likelihood.detach(), log_ratio.detach(), log_w.detach()))
        self._rows += len(log_w)
        if self._rows >= max(_GATHERED, tail_length(self.num_samples)):
            self._reduce()

    def finish(self) -> _State:
        """What was gathered, once all K draws are there.

        Raises:
            ValueError: If there are fewer, or a weight is NaN.
        """
        if self._gathered:
            self._reduce()
        if self._state is None or self.done != self.num_samples:
            raise ValueError(f"log weights: expected {self.num_samples} draws, got {self.done}.")
        return self._state

    def _reduce(self) -> None:
        likelihood, ratio, log_w = (torch.cat(part) for part in zip(*self._gathered, strict=True))
        self._gathered, self._rows = [], 0
        if self._state is None:
            self._state = _State(self, log_w)
        self._state.add(_double(likelihood), _double(ratio), _double(log_w), self.done)
        self.done += len(log_w)


def _double(x: Tensor) -> Tensor:
    """In float64, on the same device where that can be."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class _State:
    """The sums behind :class:`Moments`; each of shape ``(B,)`` unless said.

    Attributes:
        top: The largest log weights, in falling order, shape ``(T + 1, B)``.
        body: Log of the sum of the others.
        highest: The largest log weight.
        lowest: The smallest.
        mean: Mean of w, relative to ``highest``.
        squares: Sum of the squares of w - mean, likewise.
        blocks: Log of the sum of w over each block of draws, shape ``(G, B)``.
        block_sizes: Draws in each block, shape ``(G,)``.
        elbo: Sum of log w.
        elbo_squares: Sum of the squares of log w - its mean.
        likelihood: Sum of log p(x|z).
        ratio: Sum of log p(z) - log q(z|x).
        eps: Rounding of the dtype in which the weights were computed.
    """

    def __init__(self, owner: Moments, log_w: Tensor) -> None:
        self.num_samples, self.kept = owner.num_samples, min(owner.num_samples, tail_length(owner.num_samples) + 1)
        self.eps = torch.finfo(log_w.dtype).eps
        zero = _double(log_w[0]).new_zeros(owner.num_data)
        never = zero - math.inf
        self.top = never.new_empty(0, owner.num_data)
        self.body, self.highest, self.lowest = never, never, -never
        self.mean, self.squares, self.elbo, self.elbo_squares, self.likelihood, self.ratio = (zero,) * 6
        self.blocks = never.repeat(owner.num_blocks, 1)
        ends = [g * owner.num_samples // owner.num_blocks for g in range(owner.num_blocks + 1)]
        self.block_sizes = torch.tensor([end - start for start, end in itertools.pairwise(ends)])

    def add(self, likelihood: Tensor, ratio: Tensor, log_w: Tensor, done: int) -> None:
        """Take float64 draws, the first of which is number ``done``."""
        if bool(log_w.isnan().any()):
            raise ValueError(f"log weights: expected numbers, got NaN for {int(log_w.isnan().any(0).sum())} data.")
        self._add_weights(log_w, done)
        self._add_bound(likelihood + ratio, done)
        self.likelihood, self.ratio = self.likelihood + likelihood.sum(0), self.ratio + ratio.sum(0)
        self._add_blocks(log_w, done)
        ordered = torch.cat([self.top, log_w]).sort(0, descending=True).values
        self.top = ordered[: self.kept]
        self.body = torch.logaddexp(self.body, ordered[self.kept :].logsumexp(0))

    def _add_weights(self, log_w: Tensor, done: int) -> None:
        highest = torch.maximum(self.highest, log_w.amax(0))
        shift = torch.where(highest.isfinite(), highest, 0)
        rescaled = torch.where(highest > -math.inf, (self.highest - shift).exp(), 1)
        w = (log_w - shift).exp()
        self.mean, self.squares = _merge(self.mean * rescaled, self.squares * rescaled.square(), done, w)
        self.highest, self.lowest = highest, torch.minimum(self.lowest, log_w.amin(0))

    def _add_bound(self, terms: Tensor, done: int) -> None:
        _, self.elbo_squares = _merge(self.elbo / max(done, 1), self.elbo_squares, done, terms)
        self.elbo = self.elbo + terms.sum(0)

    def _add_blocks(self, log_w: Tensor, done: int) -> None:
        total, size = self.num_samples, len(self.blocks)
        ends = [(g + 1) * total // size for g in range(size)]
        start = done
        for block, end in enumerate(ends):
            if start < end and start < done + len(log_w):
                stop = min(end, done + len(log_w))
                part = log_w[start - done : stop - done].logsumexp(0)
                self.blocks[block] = torch.logaddexp(self.blocks[block], part)
                start = stop


def _merge(mean: Tensor, squares: Tensor, done: int, new: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of ``done`` values and of new ones, shape ``(k, B)``, together."""
    count = len(new)
    theirs = new.mean(0)
    difference = theirs - mean
    squares = squares + (new - theirs).square().sum(0) + difference.square() * (done * count / (done + count))
    return mean + difference * (count / (done + count)), squares
