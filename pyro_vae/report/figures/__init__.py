"""Figures, one module for each kind."""

from pyro_vae.system.imports import quiet_font_cache

with quiet_font_cache():
    import matplotlib.figure  # noqa: F401
