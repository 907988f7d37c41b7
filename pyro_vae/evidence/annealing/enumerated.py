r"""Densities of what chains move along, with the discrete latents y that are marked for enumeration summed out.

.. math:: p(z) = \textstyle\sum_y p(y, z), \quad p(x, z) = \sum_y p(x, y, z), \quad q(z|x) = \sum_y q(y, z|x)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Pair
from pyro_vae.inference.weights.enumeration import EnumerationSums


def enumerated(program: Callable[..., Any], sites: Sequence[str], deep: int) -> Callable[..., Any]:
    """A program that takes all values of these sites at once, along axes left of its ``deep`` plates."""
    marked = poutine.infer_config(program, lambda site: {"enumerate": "parallel"} if site["name"] in sites else {})
    return EnumMessenger(-1 - deep)(marked)


def summed(trace: Trace, data_plate: DataPlate, sites: Sequence[str], num: int) -> tuple[Tensor, Tensor]:
    """Log-probability of a trace's observed sites given its latent ones, and of these, ``sites`` summed out of both.

    Args:
        trace: Of a program made by :func:`enumerated`.
        data_plate: Where the data are.
        sites: Those that were enumerated.
        num: C, chains in the trace.

    Returns:
        Two arrays of shape ``(C, B)``, nats: their sum is the log of the joint density, summed over y.
    """
    found = EnumerationSums(Pair(trace, Trace()), data_plate, sites).model_terms()
    likelihood, prior = (part.reshape(part.shape[-2:]).expand(num, data_plate.size) for part in found)
    return likelihood, prior


def only(trace: Trace, names: Collection[str]) -> Trace:
    """The sites of a trace that have these names; what a guide observes is no draw of it."""
    kept = trace.copy()
    for name, _ in sample_sites(trace):
        if name not in names:
            kept.remove_node(name)
    return kept
