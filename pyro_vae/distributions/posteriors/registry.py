"""Posteriors by name."""

from __future__ import annotations

from torch import nn

from pyro_vae.distributions.posteriors.normal import DiagonalNormal

POSTERIORS: dict[str, type[nn.Module]] = {"normal": DiagonalNormal}
