"""Sums of sites' log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.inference.program.sites import Site, site_log_prob


class RunningSum:
    """A sum of tensors that begins with its first term.

    Starting at 0 would cost a step of the backward pass.

    Attributes:
        total: The sum so far; None before the first term.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Add a term."""
        self.total = term if self.total is None else self.total + term

    def subtract(self, term: Tensor) -> None:
        """Subtract a term."""
        self.total = -term if self.total is None else self.total - term

    def value(self, like: Tensor | None = None) -> Tensor:
        """The sum; without any term, zeros like ``like``, or a 0-dim zero."""
        if self.total is not None:
            return self.total
        return torch.zeros(()) if like is None else torch.zeros_like(like.detach())


def true_sum(site: Site) -> Tensor:
    """Sum of a site's log-probability, masked, without scales, detached; 0-dim, nats."""
    if isinstance(site["scale"], float) and site["scale"] == 1.0:
        total: Tensor = site["log_prob_sum"]
        return total.detach()
    return site_log_prob(site).detach().sum()
