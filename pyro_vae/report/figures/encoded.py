"""What the encoder makes of the data, found once for all pictures that show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.data import Inputs, Split
from pyro_vae.models.protocol import call_with_inputs, evaluation_inputs, num_required_arguments, takes
from pyro_vae.report.figures.tiles import like_parameters, spread_rows
from pyro_vae.system.randomness import own_randomness

ENCODER_ROWS = 1000


@dataclass(frozen=True)
class Encoded:
    """Data seen through the encoder: at most ``MAX_ROWS`` of them, evenly spaced; tensors on the CPU.

    Attributes:
        rows: Which data of the split, shape ``(N,)``, int64.
        means: What it gives, of a distribution the mean, shape ``(N, Z)``, float64.
        labels: Their labels, shape ``(N,)``, or None.
        unit_kl: KL of each unit, mean over these data, shape ``(Z,)``, nats; None where the KL is no sum over units.
        total: How many data the split has.
        words: What the means are of: ``codes`` of an encoder that gives no distribution.
        num_sites: How many latent sites the guide has; of one alone the units' KL sums to the rate.
    """

    rows: Tensor
    means: Tensor
    labels: Tensor | None
    unit_kl: Tensor | None
    total: int
    words: str = "means of q(z|x)"
    num_sites: int = 1

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of the split, means and labels of the data at ``index``."""
        return self.rows[index], self.means[index], None if self.labels is None else self.labels[index]

    @property
    def q(self) -> str | None:
        """What the encoder's distribution is called, such as ``q(z|x)``; None where it is none that a title can name."""
        return self.words.removeprefix("means of ") if self.words.startswith("means of ") else None

    def amount(self, count: int | None = None) -> str:
        """In words, how many of all data ``count`` of these are (None: all of these)."""
        count = len(self.rows) if count is None else count
        return f"{self.total:,}" if count == self.total else f"{count:,} of {self.total:,}"


def encode(vae: Any, split: Split) -> Encoded:
    """Encode the data of a split, a chunk at a time, by a model that can."""
    rows, columns = spread_rows(len(split.x)), evaluation_inputs(vae, split)
    means: list[Tensor] = []
    words = "posterior means"
    kls: list[Tensor | None] = []
    for part in rows.split(min(ENCODER_ROWS, columns.chunk)):
        q = call_with_inputs(vae.encode, like_parameters(vae, columns[part]))
        kl = evidence.kl_per_unit(q, vae.prior()) if hasattr(vae, "prior") else None
        words = words_of(vae, q)
        means.append(q.mean.cpu().double())
        kls.append(None if kl is None else kl.cpu().double())
    known = [kl for kl in kls if kl is not None]
    return Encoded(
        rows=rows,
        means=torch.cat(means),
        labels=None if split.y is None or split.y.dim() > 1 else split.y.cpu()[rows],
        unit_kl=torch.cat(known).mean(0) if len(known) == len(kls) else None,
        total=len(split.x),
        words=words,
        num_sites=_num_latents(vae, columns),
    )


def _num_latents(vae: Any, columns: Inputs) -> int:
    """How many sites its guide draws for a datum; 0 of what has no guide."""
    if not hasattr(vae, "guide"):
        return 0
    with own_randomness(0), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        trace = poutine.trace(vae.guide).get_trace(*like_parameters(vae, columns[:2]))
    return sum(not site_is_subsample(trace.nodes[name]) for name in trace.stochastic_nodes)


def is_point(q: Any) -> bool:
    """Whether what an encoder gives is a code, all mass in one point, and no distribution to speak of."""
    while hasattr(q, "base_dist"):
        q = q.base_dist
    return isinstance(q, dist.Delta)


def words_of(vae: Any, q: Any) -> str:
    """What the mean of ``q``, which a model's encoder gave, is called in a title; of labels it may have found some itself."""
    if is_point(q):
        return "codes"
    if num_required_arguments(vae.encode) == 2:
        return "means of q(z|x, y)"
    return "means of q(z|x)" if takes(vae) == ("x",) else "posterior means"
