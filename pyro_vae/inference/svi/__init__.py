"""Stochastic variational inference: the training steps."""
