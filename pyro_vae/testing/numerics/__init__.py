"""Numerical oracles: quadrature, normalization, tests of significance."""
