"""Guides that are refined for each datum, and the inference gaps."""
