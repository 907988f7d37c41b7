"""Estimates of log p(x) for each datum, and their diagnostics."""
