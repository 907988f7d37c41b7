"""Importance sampling in chunks of draws, each reduced before the next.

``importance_sampling`` makes a :class:`Sampler`, which makes a proposal for a batch of data (:meth:`Sampler.proposal`), draws
from it with the noise of ``noise_streams`` (:meth:`Sampler.weights`) and adds the weights to the ``Moments`` of an ``Estimate``
(:meth:`Sampler.estimate`). ``adaptive`` calls ``estimate`` once for a pilot and once for each group of data with the same
number of draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_vae.errors import check_data
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.estimates.moments import Moments
from pyro_vae.evidence.importance.noise_streams import ESTIMATE, NoiseStreams
from pyro_vae.inference.program.sites import drawn_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.inference.weights.compiled import CapturedDraws
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.inference.weights.log_weights import EnumeratedSiteError, ProposalDraws
from pyro_vae.system.randomness import own_randomness

#: Rows (draws * data) in one call of the model on the CPU. Larger calls fall out of the processor's cache.
CHUNK_ROWS = 1000
#: Rows in one call of the model on an accelerator, which smaller calls leave idle.
DEVICE_CHUNK_ROWS = 20_000

Proposal = ProposalDraws | EnumeratedDraws


@dataclass(frozen=True)
class Sampler:
    """Importance sampling of one model and guide.

    Attributes:
        model: A Pyro model.
        guide: The guide of the model.
        seed: Seed of the draws; None: each estimate takes a seed from torch's generator.
        chunk_rows: Number of rows (draws * data) in one call of the model; None: the device's default.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        captured: Compiler of the chunks; None: the chunks run eagerly.
    """

    model: Program
    guide: Program
    seed: int | None = None
    chunk_rows: int | None = None
    plate: str | None = None
    outer_scale: OuterScale = "refuse"
    vectorize: bool = True
    captured: CapturedDraws | None = None

    def proposal(self, args: Args, kwargs: Kwargs) -> Proposal:
        """Make the proposal for one batch of data.

        Args:
            args: Positional arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Raises:
            ValueError: If model and guide have no weights for each datum, the guide is a Delta, or there are no data.
        """
        check_data(args, kwargs)
        options = (self.model, self.guide, args, kwargs, self.plate, self.outer_scale, self.vectorize)
        proposal: Proposal
        try:
            proposal = ProposalDraws(*options, self.captured, refuse_enumerated=True)
        except EnumeratedSiteError:
            proposal = EnumeratedDraws(*options, self.captured)
        _refuse_delta(proposal)
        return proposal

    def seeded_for(self, data_ids: Tensor | None, purpose: int = ESTIMATE) -> AbstractContextManager[None]:
        """Context in which torch's generator is seeded for the given data.

        Sites that do not use the noise streams draw from torch's generator. The generator's state is restored at the end of the
        context. Without a seed, the context does nothing.
        """
        if self.seed is None:
            return nullcontext()
        ids = () if data_ids is None else tuple(int(i) for i in data_ids)
        mixed = np.random.SeedSequence(self.seed, spawn_key=(purpose, *ids)).generate_state(1, np.uint64)
        return own_randomness(int(mixed[0]) % 2**63)

    def estimate(
        self, proposal: Proposal, num_samples: int, data_ids: Tensor | None, purpose: int = ESTIMATE
    ) -> Estimate:
        """Estimate log p(x) of each datum.

        Args:
            proposal: The proposal for the batch.
            num_samples: Number of draws, K.
            data_ids: Integer identifier of each datum, shape ``(B,)``; None: 0 to B - 1.
            purpose: ``ESTIMATE`` or ``PILOT``, see :mod:`pyro_vae.evidence.importance.noise_streams`.
        """
        moments = Moments(num_samples, proposal.data_plate.size)
        for chunk in self.weights(proposal, num_samples, data_ids, purpose):
            moments.add(*chunk)
        return Estimate.from_moments(moments)

    def weights(
        self, proposal: Proposal, num_samples: int, data_ids: Tensor | None = None, purpose: int = ESTIMATE
    ) -> Iterator[tuple[Tensor, ...]]:
        """Draw in chunks and yield each chunk's arguments of :meth:`Moments.add`.

        Args:
            proposal: The proposal for the batch.
            num_samples: Number of draws, K.
            data_ids: See :meth:`estimate`.
            purpose: See :meth:`estimate`.

        Yields:
            log p(x|z) and log p(z) - log q(z|x), each of shape ``(k, B)``, nats; with enumerated sites also the log weights.
        """
        chunk = self._chunk_draws(proposal)
        if isinstance(proposal, EnumeratedDraws):
            for start in range(0, num_samples, chunk):
                terms = proposal(min(chunk, num_samples - start))
                yield terms.log_likelihood, terms.log_ratio, terms.log_w
            return
        if num_samples > 2 * chunk:
            proposal.encode_once()
        seed = int(torch.randint(2**63 - 1, ())) if self.seed is None else self.seed
        noise = NoiseStreams(seed, torch.arange(proposal.data_plate.size) if data_ids is None else data_ids, purpose)
        for start in range(0, num_samples, chunk):
            yield proposal(min(chunk, num_samples - start), noise, start)

    def _chunk_draws(self, proposal: Proposal) -> int:
        """Number of draws in one call of the model, at least 1."""
        on_cpu = proposal.first.log_likelihood.device.type == "cpu"
        rows = self.chunk_rows or (CHUNK_ROWS if on_cpu else DEVICE_CHUNK_ROWS)
        rows_of_draw = proposal.data_plate.size * (proposal.num_values if isinstance(proposal, EnumeratedDraws) else 1)
        return max(1, rows // max(1, rows_of_draw))


def _refuse_delta(proposal: Proposal) -> None:
    sites = dict(drawn_sites(proposal.guide_trace))
    for name, site in sites.items():
        base = site["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        # Pyro's autoguides draw an auxiliary site and pass it on by Delta sites, whose log_density is the Jacobian.
        if isinstance(base, Delta) and not any(s["infer"].get("is_auxiliary", False) for s in sites.values()):
            raise ValueError(
                f"guide site {name!r}: expected a distribution with a density, got a Delta, whose weights do not estimate "
                "log p(x); use a guide with a scale, such as AutoNormal."
            )
