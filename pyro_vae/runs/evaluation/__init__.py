"""Evaluation of a finished run."""
