"""Checks of a run before it begins: nothing is written, and a wrong flag costs no training."""
