"""Posteriors q(z|x), computed from the encoder's output."""
