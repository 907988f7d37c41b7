"""Traces of a model and its guide: copies, changes and replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.program.sites import Site, drawn_sites, is_subsample, with_value

#: A Pyro function: a model or a guide.
Program = Callable[..., Any]
#: Positional and keyword arguments of a model and its guide.
Args = tuple[object, ...]
Kwargs = dict[str, object]


class Pair(NamedTuple):
    """Traces of a model and its guide with the same draws."""

    model: Trace
    guide: Trace


def with_values(trace: Trace, change: Callable[[str, Site], Tensor]) -> Trace:
    """Copy a trace and replace the values of its latent sites.

    Args:
        trace: Trace of a guide.
        change: Function of the site's name and the site. It returns the new value of the site.
    """
    copy = trace.copy()
    for name, site in drawn_sites(trace):
        copy.nodes[name] = with_value(site, change(name, site))
    return copy


def detached(_name: str, site: Site) -> Tensor:
    """Return a site's value without gradient; an argument of :func:`with_values`."""
    return site["value"].detach()


def subsamples(pair: Pair) -> Trace:
    """Return a trace with only the subsampling sites of model and guide."""
    rows = Trace()
    for trace in pair:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and is_subsample(site) and name not in rows:
                rows.add_node(name, **site)
    return rows


def keep_subsample(pair: Pair, *programs: Program) -> tuple[Program, ...]:
    """Make programs use the same subsample of the data as ``pair``.

    All draws in the estimate of a bound then use the same data.
    """
    rows = subsamples(pair)
    return tuple(poutine.replay(program, trace=rows) for program in programs) if len(rows) else programs


def prior_guide(model: Program) -> Program:
    """Make the guide q(z) = p(z), which samples from the prior."""

    def guide(*args: object, **kwargs: object) -> object:
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"]):
            return model(*args, **kwargs)

    return guide
