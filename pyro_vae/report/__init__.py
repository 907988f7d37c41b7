"""Pictures of a run: what a trained model makes, and how its training went."""

from pyro_vae.report.pictures import draw_pictures

__all__ = ["draw_pictures"]
