r"""Densities along the path with enumerated discrete latents y summed out.

.. math:: p(z) = \textstyle\sum_y p(y, z), \quad p(x, z) = \sum_y p(x, y, z), \quad q(z|x) = \sum_y q(y, z|x)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Pair, Program
from pyro_vae.inference.weights.enumeration import EnumerationSums


def enumerate_sites(program: Program, sites: Sequence[str], num_plates: int) -> Program:
    """Make a program that enumerates all values of the given sites.

    Args:
        program: A model or a guide.
        sites: Names of the sites.
        num_plates: Number of dimensions that plates use. The enumerated dimensions lie to the left of these.
    """
    marked = poutine.infer_config(program, lambda site: {"enumerate": "parallel"} if site["name"] in sites else {})
    return EnumMessenger(-1 - num_plates)(marked)


def sum_out(trace: Trace, data_plate: DataPlate, sites: Sequence[str], num_chains: int) -> tuple[Tensor, Tensor]:
    r"""Compute log-probabilities with the enumerated sites summed out.

    .. math:: \log p(x|z) = \log p(x, z) - \log p(z)

    x are the observed sites, z the latent sites that are not enumerated.

    Args:
        trace: Trace of a program made by :func:`enumerate_sites`.
        data_plate: The data plate.
        sites: Names of the enumerated sites, y.
        num_chains: Number of chains in the trace, C.

    Returns:
        log p(x|z) and log p(z), each of shape ``(C, B)``, nats. Their sum is log p(x, z).
    """
    terms = EnumerationSums(Pair(trace, Trace()), data_plate, sites).model_terms()
    likelihood, prior = (part.reshape(part.shape[-2:]).expand(num_chains, data_plate.size) for part in terms)
    return likelihood, prior


def keep_sites(trace: Trace, names: Collection[str]) -> Trace:
    """Copy a trace and keep only the named sample sites."""
    kept = trace.copy()
    for name, _ in sample_sites(trace):
        if name not in names:
            kept.remove_node(name)
    return kept
