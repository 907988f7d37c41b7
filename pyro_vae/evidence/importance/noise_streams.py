"""Random numbers that belong to a datum: a stream for each seed, site, datum and block of draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pyro_vae.inference.program.noise import NoiseShape

#: Draws of one block; within it numbers follow each other, and each block begins anew.
BLOCK = 1024
#: What draws are for: those of a pilot are others than those of an estimate.
ESTIMATE, PILOT = 0, 1
#: Numbers of all data that are made ahead, since small calls of the model would ask for few at a time.
AHEAD = 2**19
#: Numbers for one datum from which more than one thread makes them.
_WORTH_THREADS = 2_000


class NoiseStreams:
    r"""Standard normal draws of each datum, whatever else is drawn with it.

    .. math:: \epsilon_{ki} = \text{Philox}\big(\text{key}(\text{seed}, \text{purpose}, \text{site}),\
        \text{counter}(i, \lfloor k / 1024 \rfloor)\big)

    The numbers of a draw do not depend on chunks, on the other data of a batch or their order, on threads or on the
    device; they do depend on the dtype. Going through the draws in order is cheapest.

    Args:
        seed: Seed, at least 0.
        data_ids: Which datum each is, int64, shape ``(B,)``.
        purpose: ``ESTIMATE`` or ``PILOT``.

    References:
        Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
    """

    def __init__(self, seed: int, data_ids: Tensor, purpose: int = ESTIMATE) -> None:
        self.seed, self.purpose = seed, purpose
        self.data_ids = [int(i) for i in data_ids]
        self._sites: dict[tuple[str, NoiseShape], _Site] = {}

    def __call__(self, name: str, start: int, num: int, like: NoiseShape) -> Tensor:
        """The numbers of draws ``start`` to ``start + num`` of a site, shape ``(num, B, width)``."""
        if like.width == 0:
            return torch.empty(num, len(self.data_ids), 0, dtype=like.dtype, device=like.device)
        if (name, like) not in self._sites:
            site = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
            key = np.random.SeedSequence(self.seed, spawn_key=(self.purpose, site))
            self._sites[name, like] = _Site(key.generate_state(2, np.uint64), self.data_ids, like)
        return self._sites[name, like].take(start, num)


class _Site:
    """The streams of one site, each where it was left."""

    def __init__(self, key: np.ndarray, data_ids: Sequence[int], like: NoiseShape) -> None:
        self.key, self.data_ids, self.like = key, data_ids, like
        self.dtype = np.float64 if like.dtype == torch.float64 else np.float32
        self.position = -1
        self.generators: list[np.random.Generator] = []
        self.low = self.high = 0
        self.ahead = np.empty((len(data_ids), 0, like.width), self.dtype)

    def take(self, start: int, num: int) -> Tensor:
        drawn = np.empty((num, len(self.data_ids), self.like.width), self.dtype)
        draw = start
        while draw < start + num:
            if not self.low <= draw < self.high:
                self._make(draw, start + num - draw)
            end = min(start + num, self.high)
            drawn[draw - start : end - start] = self.ahead[:, draw - self.low : end - self.low].swapaxes(0, 1)
            draw = end
        return torch.from_numpy(drawn).to(device=self.like.device, dtype=self.like.dtype)

    def _make(self, draw: int, wanted: int) -> None:
        """The numbers of some draws of a block: those wanted, or more to come."""
        self._go_to(draw)
        count = max(wanted, AHEAD // (len(self.data_ids) * self.like.width))
        self.low, self.high = draw, min(draw + count, draw - draw % BLOCK + BLOCK)
        self.ahead = np.empty((len(self.data_ids), self.high - self.low, self.like.width), self.dtype)
        self._fill(self.ahead)
        self.position = self.high

    def _go_to(self, draw: int) -> None:
        """Put every stream before a draw: where it is, or at the block's beginning and on from there."""
        if draw == self.position and draw % BLOCK:
            return
        block, skipped = divmod(draw, BLOCK)
        self.generators = [
            np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, block, i])) for i in self.data_ids
        ]
        for generator in self.generators if skipped else ():
            generator.standard_normal(skipped * self.like.width, dtype=self.dtype)

    def _fill(self, numbers: np.ndarray) -> None:
        rows = [(g, row) for g, row in zip(self.generators, numbers, strict=True)]
        threads = torch.get_num_threads()
        if threads == 1 or len(rows) == 1 or numbers[0].size < _WORTH_THREADS:
            self._fill_rows(rows)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._fill_rows, [rows[t::threads] for t in range(threads)]))

    def _fill_rows(self, rows: list[tuple[np.random.Generator, np.ndarray]]) -> None:
        for generator, row in rows:
            generator.standard_normal(out=row, dtype=self.dtype)
