"""Importance sampling of log p(x)."""
