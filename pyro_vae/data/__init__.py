"""Data: where images come from, how they are split and binarized, and how batches are drawn."""

from pyro_vae.data.batches import BINARIZE, batches, binarize
from pyro_vae.data.sources import SOURCES, Data, Split, load

__all__ = ["BINARIZE", "SOURCES", "Data", "Split", "batches", "binarize", "load"]
