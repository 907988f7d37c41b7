"""Posteriors by name, ``--posterior NAME``."""

from __future__ import annotations

from pyro_vae.distributions.base import Posterior
from pyro_vae.distributions.posteriors.normal import DiagonalNormal

POSTERIORS: dict[str, type[Posterior]] = {"normal": DiagonalNormal}
