"""Pairs of traces: a model and a guide over the same draws, and their replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.program.sites import Site, is_subsample, sample_sites

#: A Pyro function: a model or a guide.
Program = Callable[..., Any]
#: The arguments that a model and its guide are called with.
Args = tuple[object, ...]
Kwargs = dict[str, object]


class Pair(NamedTuple):
    """A model trace and a guide trace over the same draws, both scored."""

    model: Trace
    guide: Trace


def with_values(trace: Trace, change: Callable[[str, Site], Tensor]) -> Trace:
    """A copy of a trace, to be replayed, in which ``change(name, site)`` is the value of each latent site."""
    copy = trace.copy()
    for name, site in sample_sites(trace):
        if not site["is_observed"]:
            node = {**site, "value": change(name, site)}
            for key in ("log_prob", "log_prob_sum", "unscaled_log_prob", "score_parts"):
                node.pop(key, None)
            copy.nodes[name] = node
    return copy


def subsamples(pair: Pair) -> Trace:
    """The sites at which a pair of traces has chosen the rows of its plates."""
    rows = Trace()
    for trace in pair:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and is_subsample(site) and name not in rows:
                rows.add_node(name, **site)
    return rows


def keep_subsample(pair: Pair, *programs: Program) -> tuple[Program, ...]:
    """Replay programs over the rows of a pair, so that all draws of a bound see the same data."""
    rows = subsamples(pair)
    return tuple(poutine.replay(program, trace=rows) for program in programs) if len(rows) else programs


def prior_guide(model: Callable[..., Any]) -> Callable[..., Any]:
    """The guide that samples the model's latent sites from their prior, q(z) = p(z)."""

    def guide(*args: object, **kwargs: object) -> Any:
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"]):
            return model(*args, **kwargs)

    return guide
