"""Estimates of log p(x) for each datum, with diagnostics of the estimates."""
