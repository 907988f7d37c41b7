"""Proposals refined for each datum, and the gaps they reveal."""
