"""Generative models with their guides."""

from pyro_vae.models.base import Model
from pyro_vae.models.registry import MODELS
from pyro_vae.models.vae import VAE

__all__ = ["MODELS", "VAE", "Model"]
