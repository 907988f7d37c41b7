"""Likelihoods p(x|z): decoder outputs to distributions of the data."""
