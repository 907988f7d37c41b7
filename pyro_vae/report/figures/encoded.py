"""The encoded data, computed once for all pictures that show them."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.data import Inputs, Split
from pyro_vae.models.protocol import (
    Encodes,
    call_with_inputs,
    evaluation_inputs,
    method_of,
    num_required_arguments,
    takes,
)
from pyro_vae.report.figures.tiles import like_parameters, spread_rows
from pyro_vae.system.randomness import own_randomness

ENCODER_ROWS = 1000


@dataclass(frozen=True)
class Encoded:
    """Latent vectors of at most ``MAX_ROWS`` data; tensors on the CPU.

    Attributes:
        rows: Evenly spaced rows of the split: the N encoded data, shape ``(N,)``, int64.
        means: Means of q(z|x), or the codes of an encoder without a distribution, shape ``(N, Z)``, float64.
        labels: Labels, shape ``(N,)``, or None if there are none.
        unit_kl: KL of each latent unit, averaged over the encoded data, shape ``(Z,)``, nats; None if the KL is not a sum over
            units.
        total: Number of data in the split.
        name: Name of the latent vectors in a title, such as ``means of q(z|x)`` or ``codes``.
        num_sites: Number of latent sites of the guide. If there is one site, the KLs of its units sum to the rate.
    """

    rows: Tensor
    means: Tensor
    labels: Tensor | None
    unit_kl: Tensor | None
    total: int
    name: str = "means of q(z|x)"
    num_sites: int = 1

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Select some of the encoded data: rows of the split, means, labels.

        Args:
            index: Positions among the encoded data, int64.
        """
        return self.rows[index], self.means[index], None if self.labels is None else self.labels[index]

    @property
    def q(self) -> str | None:
        """Name of the encoder's distribution, such as ``q(z|x)``; None without one."""
        return self.name.removeprefix("means of ") if self.name.startswith("means of ") else None

    def amount(self, count: int | None = None) -> str:
        """Return how many data of the split are shown: ``40 of 70``.

        Args:
            count: Number of data shown; None: all encoded data.
        """
        count = len(self.rows) if count is None else count
        return f"{self.total:,}" if count == self.total else f"{count:,} of {self.total:,}"


def encode(vae: Encodes, split: Split) -> Encoded:
    """Encode the data of a split in chunks.

    Args:
        vae: A model with ``encode``.
        split: The data. If there are more than ``MAX_ROWS`` data, only ``MAX_ROWS`` evenly spaced data are encoded.

    Returns:
        Latent vectors with labels, and the KL of each latent unit if the model has a prior with independent units.
    """
    prior = method_of(vae, "prior")
    rows, columns = spread_rows(len(split.x)), evaluation_inputs(vae, split)
    means: list[Tensor] = []
    name = "posterior means"
    kls: list[Tensor | None] = []
    for part in rows.split(min(ENCODER_ROWS, columns.chunk)):
        q = call_with_inputs(vae.encode, like_parameters(vae, columns[part]))
        kl = None if prior is None else evidence.kl_per_unit(q, prior())
        name = latent_name(vae, q)
        means.append(q.mean.cpu().double())
        kls.append(None if kl is None else kl.cpu().double())
    known = [kl for kl in kls if kl is not None]
    return Encoded(
        rows=rows,
        means=torch.cat(means),
        labels=None if split.y is None or split.y.dim() > 1 else split.y.cpu()[rows],
        unit_kl=torch.cat(known).mean(0) if len(known) == len(kls) else None,
        total=len(split.x),
        name=name,
        num_sites=_num_latents(vae, columns),
    )


def _num_latents(vae: Encodes, columns: Inputs) -> int:
    """Count the latent sites of the guide; return 0 without a guide."""
    if not hasattr(vae, "guide"):
        return 0
    with own_randomness(0), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        trace = poutine.trace(vae.guide).get_trace(*like_parameters(vae, columns[:2]))
    return sum(not site_is_subsample(trace.nodes[site]) for site in trace.stochastic_nodes)


def is_point(q: TorchDistributionMixin) -> bool:
    """Return True if the encoder's distribution has all mass in one point."""
    while hasattr(q, "base_dist"):
        q = q.base_dist
    return isinstance(q, dist.Delta)


def latent_name(vae: Encodes, q: TorchDistributionMixin) -> str:
    """Return the name of a model's latent vectors, for a title.

    Args:
        vae: The model. The name says if the model encodes with labels that it inferred itself.
        q: The distribution that the encoder returned.
    """
    if is_point(q):
        return "codes"
    if num_required_arguments(vae.encode) == 2:
        return "means of q(z|x, y)"
    return "means of q(z|x)" if takes(vae) == ("x",) else "posterior means"
