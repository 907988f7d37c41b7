"""Posteriors q(z|x): the encoder's output to a distribution of the latent vector."""
