"""Importance sampling of log p(x) from a guide or the prior."""
