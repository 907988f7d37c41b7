"""Numerical tools of the checks: quadrature, total mass, statistical tests."""
