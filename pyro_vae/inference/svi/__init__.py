"""Stochastic variational inference: one step of an optimizer."""
