"""Estimates of log p(x): per-datum figures, moments, tail diagnostics."""
