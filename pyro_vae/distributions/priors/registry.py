"""Priors by name, ``--prior NAME``."""

from __future__ import annotations

from pyro_vae.distributions.base import Prior
from pyro_vae.distributions.priors.normal import LearnedNormal, StandardNormal

PRIORS: dict[str, type[Prior]] = {
    "normal": StandardNormal,
    "diagonal-normal": LearnedNormal,
}
