"""Semi-supervised models, for data with partly known labels."""

from pyro_vae.models.semi_supervised.auxiliary import ADGM, SDGM
from pyro_vae.models.semi_supervised.m1 import M1
from pyro_vae.models.semi_supervised.m1m2 import M1M2
from pyro_vae.models.semi_supervised.m2 import M2

__all__ = ["ADGM", "M1", "M1M2", "M2", "SDGM"]
