"""Posteriors q(z|x): encoder outputs to distributions of the code."""
