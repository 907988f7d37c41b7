"""Running moments of log weights; memory does not grow with the draws."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from pyro_vae.errors import check_count
from pyro_vae.evidence.estimates.pareto import tail_length

#: Number of blocks of draws that the jackknife leaves out one by one. With 50, the jackknife error is itself known to 10 %.
JACKKNIFE_BLOCKS = 50
#: Draws are collected until there are at least this many, then reduced together.
_MIN_DRAWS_TO_REDUCE = 256


class Moments:
    r"""Running moments of each datum's log weights.

    Draws are added in chunks. The moments of the weights w are kept in float64: mean and second moment of w, relative to the
    largest weight so far; mean and variance of log w; rate and distortion; the :math:`3 \sqrt K` largest of K weights and the
    sum of all smaller weights; and the sum of the weights in each block of the jackknife. The size of the chunks changes the
    moments by rounding only.

    Args:
        num_samples: Number of draws K, the total over all chunks.
        num_data: Number of data, B.

    Raises:
        ValueError: If K or B is below 1.

    References:
        Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983, eq. 2.1.
    """

    def __init__(self, num_samples: int, num_data: int) -> None:
        check_count("num_samples", num_samples)
        check_count("num_data", num_data)
        self.num_samples, self.num_data, self.num_reduced = num_samples, num_data, 0
        self.num_blocks = min(num_samples, JACKKNIFE_BLOCKS)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_pending = 0
        self._sums: Sums | None = None

    def add(self, log_likelihood: Tensor, log_ratio: Tensor, log_w: Tensor | None = None) -> None:
        """Add the next chunk of draws.

        Args:
            log_likelihood: log p(x|z), shape ``(k, B)``, nats, in the dtype in which it was computed.
            log_ratio: log p(z) - log q(z|x), shape ``(k, B)``, nats.
            log_w: Log importance weights, shape ``(k, B)``, nats; None: ``log_likelihood`` + ``log_ratio``. They differ with an
                enumerated site: the weight is a sum over the site's values, but ``log_likelihood`` and ``log_ratio`` are means
                over the values under q.

        Raises:
            ValueError: If a weight is NaN, or there are more than K draws.
        """
        log_w = log_likelihood + log_ratio if log_w is None else log_w
        if self.num_reduced + self._num_pending + len(log_w) > self.num_samples:
            raise ValueError(f"log weights: expected {self.num_samples} draws, got more.")
        self._pending.append((log_likelihood.detach(), log_ratio.detach(), log_w.detach()))
        self._num_pending += len(log_w)
        if self._num_pending >= max(_MIN_DRAWS_TO_REDUCE, tail_length(self.num_samples)):
            self._reduce()

    def finish(self) -> Sums:
        """Return the sums over all draws.

        Raises:
            ValueError: If draws are missing, or a weight is NaN.
        """
        if self._pending:
            self._reduce()
        if self._sums is None or self.num_reduced != self.num_samples:
            raise ValueError(f"log weights: expected {self.num_samples} draws, got {self.num_reduced}.")
        return self._sums

    def _reduce(self) -> None:
        likelihood, ratio, log_w = (torch.cat(part) for part in zip(*self._pending, strict=True))
        self._pending, self._num_pending = [], 0
        if self._sums is None:
            self._sums = Sums(self, log_w)
        self._sums.add(_double(likelihood), _double(ratio), _double(log_w), self.num_reduced)
        self.num_reduced += len(log_w)


def _double(x: Tensor) -> Tensor:
    """Convert to float64, on the same device if the device has float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class Sums:
    """Sums over draws that :class:`Moments` keeps for each datum.

    w is the importance weight of a draw. The tensors have shape ``(B,)`` unless stated otherwise.

    Attributes:
        top: The T + 1 largest log weights, in falling order, shape ``(T + 1, B)``, where T is the length of the tail.
        body: Log of the sum of the weights that are not in ``top``.
        highest: Largest log weight.
        lowest: Smallest log weight.
        mean: Mean of w, relative to ``highest``.
        squares: Sum of (w - mean)^2, relative to ``highest`` squared.
        blocks: Log of the sum of w over each of G blocks of draws, shape ``(G, B)``.
        block_sizes: Number of draws in each block, shape ``(G,)``.
        elbo: Sum of log w.
        elbo_squares: Sum of squared deviations of log w from its mean.
        likelihood: Sum of log p(x|z).
        ratio: Sum of log p(z) - log q(z|x).
        eps: Machine epsilon of the dtype in which the weights were computed.
    """

    def __init__(self, moments: Moments, log_w: Tensor) -> None:
        num = self.num_samples = moments.num_samples
        self.num_top = min(num, tail_length(num) + 1)
        self.eps = torch.finfo(log_w.dtype).eps
        zero = _double(log_w[0]).new_zeros(moments.num_data)
        log_zero = zero - math.inf
        self.top = log_zero.new_empty(0, moments.num_data)
        self.body, self.highest, self.lowest = log_zero, log_zero, -log_zero
        self.mean, self.squares, self.elbo, self.elbo_squares, self.likelihood, self.ratio = (zero,) * 6
        self.blocks = log_zero.repeat(moments.num_blocks, 1)
        ends = [g * num // moments.num_blocks for g in range(moments.num_blocks + 1)]
        self.block_sizes = torch.tensor([end - start for start, end in itertools.pairwise(ends)])

    def add(self, likelihood: Tensor, ratio: Tensor, log_w: Tensor, start: int) -> None:
        """Add a chunk of draws in float64; ``start`` numbers the first draw."""
        if bool(log_w.isnan().any()):
            raise ValueError(f"log weights: expected numbers, got NaN for {int(log_w.isnan().any(0).sum())} data.")
        self._add_weights(log_w, start)
        self._add_elbo(likelihood + ratio, start)
        self.likelihood, self.ratio = self.likelihood + likelihood.sum(0), self.ratio + ratio.sum(0)
        self._add_blocks(log_w, start)
        ordered = torch.cat([self.top, log_w]).sort(0, descending=True).values
        self.top = ordered[: self.num_top]
        self.body = torch.logaddexp(self.body, ordered[self.num_top :].logsumexp(0))

    def _add_weights(self, log_w: Tensor, start: int) -> None:
        highest = torch.maximum(self.highest, log_w.amax(0))
        shift = torch.where(highest.isfinite(), highest, 0)
        rescaled = torch.where(highest > -math.inf, (self.highest - shift).exp(), 1)
        w = (log_w - shift).exp()
        self.mean, self.squares = _merge(self.mean * rescaled, self.squares * rescaled.square(), start, w)
        self.highest, self.lowest = highest, torch.minimum(self.lowest, log_w.amin(0))

    def _add_elbo(self, terms: Tensor, start: int) -> None:
        _, self.elbo_squares = _merge(self.elbo / max(start, 1), self.elbo_squares, start, terms)
        self.elbo = self.elbo + terms.sum(0)

    def _add_blocks(self, log_w: Tensor, start: int) -> None:
        num_blocks, stop = len(self.blocks), start + len(log_w)
        first = start
        for block in range(num_blocks):
            end = (block + 1) * self.num_samples // num_blocks
            if first < end and first < stop:
                last = min(end, stop)
                part = log_w[first - start : last - start].logsumexp(0)
                self.blocks[block] = torch.logaddexp(self.blocks[block], part)
                first = last


def _merge(mean: Tensor, squares: Tensor, count: int, new: Tensor) -> tuple[Tensor, Tensor]:
    """Update a mean and a sum of squared deviations with new values.

    Args:
        mean: Mean of the earlier values, shape ``(B,)``.
        squares: Sum of squared deviations of the earlier values from ``mean``, shape ``(B,)``.
        count: Number of earlier values.
        new: New values, shape ``(k, B)``.

    Returns:
        Mean and sum of squared deviations of all values, earlier and new.
    """
    num = len(new)
    new_mean = new.mean(0)
    difference = new_mean - mean
    squares = squares + (new - new_mean).square().sum(0) + difference.square() * (count * num / (count + num))
    return mean + difference * (num / (count + num)), squares
