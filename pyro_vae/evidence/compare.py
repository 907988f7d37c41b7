"""Another name of :mod:`pyro_vae.evidence.comparison`."""

from pyro_vae.evidence.comparison import Comparison, Difference, Pointwise, compare

__all__ = ["Comparison", "Difference", "Pointwise", "compare"]
