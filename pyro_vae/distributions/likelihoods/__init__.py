"""Likelihoods p(x|z), computed from the decoder's output."""
