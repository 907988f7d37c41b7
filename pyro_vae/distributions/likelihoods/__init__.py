"""Likelihoods p(x|z): the decoder's output to a distribution of the data."""
