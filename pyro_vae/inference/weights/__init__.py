"""The log importance weights, kept per datum."""
