"""Whether a guide's sites are independent given the data, so that the encoder need run only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor

from pyro_vae.inference.program.sites import drawn_sites
from pyro_vae.system.randomness import own_randomness


@torch.no_grad()
def independent(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    r"""Whether every site's distribution is the same whatever is drawn at the others, :math:`q(z|x) = \prod_s q(z_s|x)`.

    It is asked twice: which draws a site's log-probability was computed from, as Pyro's provenance tells, and whether
    other draws leave the log-probabilities of the same values as they are, to the last bit. A guide that cannot be
    asked, or that has randomness outside its sites (dropout), counts as dependent. The generators are left as they were.

    Args:
        guide: A guide.
        args: What it takes.
        kwargs: Likewise.
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
    except Exception:  # a program that provenance cannot follow, or whose sites come and go
        return False


def _log_prob(site: dict[str, Any], value: Tensor) -> Tensor:
    return site["fn"].log_prob(value, *site["args"], **site["kwargs"])
