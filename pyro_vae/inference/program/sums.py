"""Sums of the log-probabilities of sites."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.inference.program.sites import Site, site_log_prob


class RunningSum:
    """A sum of tensors that starts from its first term.

    If the sum started from 0, the backward pass would have one more operation.

    Attributes:
        total: The sum so far; None before the first term.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Add a term to the sum."""
        self.total = term if self.total is None else self.total + term

    def subtract(self, term: Tensor) -> None:
        """Subtract a term from the sum."""
        self.total = -term if self.total is None else self.total - term

    def value(self, like: Tensor | None = None) -> Tensor:
        """Return the sum, or zeros if there is no term.

        Args:
            like: Tensor that gives the zeros their shape, dtype and device. If None, the zero is 0-dim.
        """
        if self.total is not None:
            return self.total
        return torch.zeros(()) if like is None else torch.zeros_like(like.detach())


def true_sum(site: Site) -> Tensor:
    """Sum a site's log-probability, with the mask, without the scales.

    Returns:
        Detached sum, 0-dim, nats.
    """
    if isinstance(site["scale"], float) and site["scale"] == 1.0:
        total: Tensor = site["log_prob_sum"]
        return total.detach()
    return site_log_prob(site).detach().sum()
