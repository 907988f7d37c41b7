"""Semi-supervised models, with labels that are known for some of the data: M1, M2, M1 + M2, ADGM and SDGM."""

from pyro_vae.models.semi_supervised.auxiliary import ADGM, SDGM
from pyro_vae.models.semi_supervised.m1 import M1
from pyro_vae.models.semi_supervised.m1m2 import M1M2
from pyro_vae.models.semi_supervised.m2 import M2

__all__ = ["ADGM", "M1", "M1M2", "M2", "SDGM"]
