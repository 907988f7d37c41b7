"""Generative models with their guides."""

from pyro_vae.models.vae import VAE

__all__ = ["VAE"]
