"""Priors by name."""

from __future__ import annotations

from torch import nn

from pyro_vae.distributions.priors.normal import StandardNormal

PRIORS: dict[str, type[nn.Module]] = {"normal": StandardNormal}
