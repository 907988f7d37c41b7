"""Independence of a guide's sites given the data."""

from __future__ import annotations

import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor

from pyro_vae.inference.program.sites import Site, drawn_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.system.randomness import own_randomness


@torch.no_grad()
def independent(guide: Program, args: Args, kwargs: Kwargs) -> bool:
    r"""Return True if a guide's sites are independent given the data.

    .. math:: q(z|x) = \textstyle\prod_s q(z_s|x)

    The encoder of such a guide needs to run only once. A guide must pass two tests. First, no site's log-probability
    depends on the draw of another site, as tracked by Pyro's provenance. Second, if the guide runs again, it gives the
    same values the same log-probabilities, to the last bit. A guide that cannot be tested, or that has randomness
    outside its sites (dropout), counts as dependent. The test restores the states of the random generators.

    Args:
        guide: A Pyro guide.
        args: Positional arguments of the guide.
        kwargs: Keyword arguments of the guide.
    """
    try:
        with own_randomness():
            with TrackProvenance():
                tracked = poutine.trace(guide).get_trace(*args, **kwargs)
            values = {name: detach_provenance(site["value"]) for name, site in drawn_sites(tracked)}
            for name, site in drawn_sites(tracked):
                if get_provenance(_log_prob(site, values[name])):
                    return False
            traces = [poutine.trace(guide).get_trace(*args, **kwargs) for _ in range(2)]
            return all(
                torch.equal(*(_log_prob(trace.nodes[name], value) for trace in traces))
                for name, value in values.items()
            )
    except Exception:  # provenance cannot follow the program, or its sites change from run to run
        return False


def _log_prob(site: Site, value: Tensor) -> Tensor:
    return site["fn"].log_prob(value, *site["args"], **site["kwargs"])
