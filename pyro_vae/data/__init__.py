"""Data: named data sets, a user's own files, binarization, splits and batches."""

from pyro_vae.data.batches import Batches
from pyro_vae.data.binarization import BINARIZE, binarize
from pyro_vae.data.dataset import Data, Inputs, Split
from pyro_vae.data.loading import load
from pyro_vae.data.named.registry import NAMED
from pyro_vae.data.stored import Stored

__all__ = ["BINARIZE", "NAMED", "Batches", "Data", "Inputs", "Split", "Stored", "binarize", "load"]
