"""Draws from a proposal, chunk by chunk, reduced to an estimate as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_vae.errors import check_data
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.estimates.moments import Moments
from pyro_vae.evidence.importance.noise_streams import ESTIMATE, NoiseStreams
from pyro_vae.inference.program.sites import drawn_sites
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.log_weights import EnumeratedSiteError, OuterScale, ProposalDraws
from pyro_vae.system.randomness import own_randomness

#: Rows (draws x data) of one call of the model. Larger calls fall out of the processor's cache.
CHUNK_ROWS = 1000
#: The same on an accelerator, which smaller calls leave idle.
DEVICE_CHUNK_ROWS = 20_000

Draws = ProposalDraws | EnumeratedDraws


@dataclass(frozen=True)
class Sampler:
    """A model and a guide to draw from, and how.

    Attributes:
        model: A Pyro model.
        guide: Its guide.
        seed: Seed of the draws, or None: one from torch's generator for each estimate.
        chunk_rows: Draws x data of one call of the model; None: what suits the device.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        captured: Compiles the chunks, if given.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    seed: int | None = None
    chunk_rows: int | None = None
    plate: str | None = None
    outer_scale: OuterScale = "refuse"
    vectorize: bool = True
    captured: CapturedDraws | None = None

    def draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draws:
        """The proposal for one batch of data.

        Raises:
            ValueError: If model and guide have no weights for each datum, the guide is a Delta, or there are no data.
        """
        check_data(args, kwargs)
        programs = (self.model, self.guide, args, kwargs, self.plate, self.outer_scale, self.vectorize)
        found: Draws
        try:
            found = ProposalDraws(*programs, self.captured, refuse_enumerated=True)
        except EnumeratedSiteError:
            found = EnumeratedDraws(*programs, self.captured)
        _refuse_delta(found)
        return found

    def randomness(self, data_ids: Tensor | None, purpose: int = ESTIMATE) -> AbstractContextManager[None]:
        """Inside, torch's generator is that of the seed and of these data, for what does not draw from the streams."""
        if self.seed is None:
            return nullcontext()
        ids = () if data_ids is None else tuple(int(i) for i in data_ids)
        mixed = np.random.SeedSequence(self.seed, spawn_key=(purpose, *ids)).generate_state(1, np.uint64)
        return own_randomness(int(mixed[0]) % 2**63)

    def __call__(self, draws: Draws, num_samples: int, data_ids: Tensor | None, purpose: int = ESTIMATE) -> Estimate:
        """Estimate log p(x) of each datum from K draws.

        Args:
            draws: The proposal.
            num_samples: K.
            data_ids: Which datum each is, shape ``(B,)``; None: the first, the second, ...
            purpose: What the draws are for; see :mod:`pyro_vae.evidence.importance.noise_streams`.
        """
        moments = Moments(num_samples, draws.data_plate.size)
        for parts in self.weights(draws, num_samples, data_ids, purpose):
            moments.add(*parts)
        return Estimate.from_moments(moments)

    def weights(
        self, draws: Draws, num_samples: int, data_ids: Tensor | None = None, purpose: int = ESTIMATE
    ) -> Iterator[tuple[Tensor, ...]]:
        """The weights of K draws, chunk by chunk, each as :meth:`Moments.add` takes it; see :meth:`__call__`."""
        chunk = self._chunk(draws)
        if isinstance(draws, EnumeratedDraws):
            for start in range(0, num_samples, chunk):
                summed = draws(min(chunk, num_samples - start))
                yield summed.log_likelihood, summed.log_ratio, summed.log_w
            return
        if num_samples > 2 * chunk:
            draws.encode_once()
        seed = int(torch.randint(2**63 - 1, ())) if self.seed is None else self.seed
        noise = NoiseStreams(seed, torch.arange(draws.data_plate.size) if data_ids is None else data_ids, purpose)
        for start in range(0, num_samples, chunk):
            yield draws(min(chunk, num_samples - start), noise, start)

    def _chunk(self, draws: Draws) -> int:
        """Draws of one call."""
        on_cpu = draws.first.log_likelihood.device.type == "cpu"
        rows = self.chunk_rows or (CHUNK_ROWS if on_cpu else DEVICE_CHUNK_ROWS)
        each = draws.data_plate.size * (draws.num_values if isinstance(draws, EnumeratedDraws) else 1)
        return max(1, rows // max(1, each))


def _refuse_delta(draws: Draws) -> None:
    sites = dict(drawn_sites(draws.guide_trace))
    for name, site in sites.items():
        base = site["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        # Pyro's autoguides draw an auxiliary site and pass it on by Delta sites, whose log_density is the Jacobian.
        if isinstance(base, Delta) and not any(s["infer"].get("is_auxiliary", False) for s in sites.values()):
            raise ValueError(
                f"guide site {name!r}: expected a distribution with a density, got a Delta, whose weights estimate no "
                "log p(x); use a guide with a scale, such as AutoNormal."
            )
