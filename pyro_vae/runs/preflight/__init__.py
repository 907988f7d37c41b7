"""Checks that run before a training run begins."""
