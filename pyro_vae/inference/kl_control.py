r"""What no weight on a site can do: floors, capacities and targets for the KL, as wrappers over an objective.

All of them are functions of the rate *averaged over the batch*,

.. math:: R_j = \tfrac1B \textstyle\sum_i KL(q(z_j | x_i) \,\|\, p(z_j)),

in closed form over ``mean-field``, from the draws over ``trace``; under an outer scale of each datum, the mean weighted by
it. The bound that they tell is the wrapped objective's: the true one.
"""

from pyro_vae.inference.kl_floors import FreeBits, MinimumRate
from pyro_vae.inference.kl_loss import KLControl
from pyro_vae.inference.kl_targets import Capacity, TargetRate

__all__ = ["Capacity", "FreeBits", "KLControl", "MinimumRate", "TargetRate"]
