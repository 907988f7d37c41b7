"""Priors p(z) of the latent vector."""
