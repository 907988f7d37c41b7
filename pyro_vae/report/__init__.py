"""Pictures of a run: what a trained model makes, and how its training went."""

from pyro_vae.system.imports import no_word_of_caches

with no_word_of_caches():
    from pyro_vae.report.pictures import draw_pictures

__all__ = ["draw_pictures"]
