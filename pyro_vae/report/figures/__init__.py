"""Figures, one file each."""

from pyro_vae.system.imports import no_word_of_caches

with no_word_of_caches():
    import matplotlib.figure  # noqa: F401
