"""Generative models with their guides."""

from pyro_vae.models.base import Model
from pyro_vae.models.vae import VAE

#: The models of the command line, ``--model NAME``.
MODELS: dict[str, type[Model]] = {"vae": VAE}

__all__ = ["MODELS", "VAE", "Model"]
