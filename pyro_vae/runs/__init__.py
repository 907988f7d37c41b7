"""Runs, from configuration to evaluation."""
