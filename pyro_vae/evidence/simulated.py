"""Data that a model made, with the latents that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.evidence.plainly import plainly
from pyro_vae.inference.layout import Site, is_auxiliary_loss, sample_sites

_WAYS_OUT = "pass posterior_draws for data of your own, or put the observed value into the model as an argument"


class Simulated(NamedTuple):
    """Data that a model made, and the latents that they were made from: one exact draw of each datum's posterior.

    Attributes:
        args: Positional arguments of the model, with the simulated data in the place of the observed values.
        kwargs: Keyword arguments, likewise.
        latents: z of each latent site by name, in the shape in which the site drew it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    latents: dict[str, Tensor]


@plainly
@torch.no_grad()
def simulate(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Simulated:
    r"""Draw as many data as are given from the model, with their latents.

    .. math:: z_i \sim p(z), \quad x_i \sim p(x | z_i)

    Since (z, x) is drawn from the joint, z is a draw from the exact posterior p(z|x). Of the data given, only shapes
    matter. Draws come from the global generator.

    An observed site that a mask leaves out whole, as ``obs_mask`` leaves out labels none of which is known, is no
    observation: its factor in p(x, z) is 1, so that the joint is that of the other sites. Its value stays what it is.

    Args:
        model: A Pyro model; each of its observed values is one of its arguments, in whatever shape, and enters it in no other
            way.
        *args: What it takes.
        **kwargs: Likewise.

    Returns:
        Arguments with simulated data, and the latents.

    Raises:
        ValueError: If an observed value is no argument of the model, the model depends on it otherwise (so that it would
            be another model for the simulated data), a site cannot be drawn from, or what a mask leaves out depends on draws.
    """
    given = poutine.trace(model).get_trace(*args, **kwargs)
    scored = {n: s for n, s in sample_sites(given) if s["is_observed"] and not is_auxiliary_loss(s)}
    observed = {n: s for n, s in scored.items() if not _left_out(s)}
    if not observed:
        got = "none" if not scored else f"{sorted(scored)} with a mask that leaves out all of it"
        raise ValueError(f"model: expected an observed site, got {got}; pass the data by obs=... or pyro.condition.")
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    places = {name: _place(name, site["value"], leaves) for name, site in observed.items()}
    drawn = _drawn(model, set(observed), args, kwargs)
    for name, place in places.items():
        leaves[place] = _in_the_form_of(leaves[place], drawn.nodes[name]["value"], name)
    new_args, new_kwargs = _pytree.tree_unflatten(leaves, spec)
    latents = {n: s["value"] for n, s in sample_sites(drawn) if n not in observed and not s["is_observed"]}
    _check_same_model(model, drawn, new_args, new_kwargs, set(scored) - set(observed))
    return Simulated(new_args, new_kwargs, latents)


def _left_out(site: Site) -> bool:
    """Whether a mask, of the site or its distribution, leaves out all of it: its log density is then 0, whatever its value."""
    masks, fn = [site["mask"]], site["fn"]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return any(mask is not None and not bool(torch.as_tensor(mask).any()) for mask in masks)


def _drawn(model: Callable[..., Any], observed: set[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    free = _Free(observed)
    try:
        with free:
            return poutine.trace(model).get_trace(*args, **kwargs)
    except NotImplementedError:
        raise ValueError(
            f"site {free.last!r}: expected a distribution that can be drawn from, got one without draws (a pyro.factor?); "
            f"{_WAYS_OUT.split(', or')[0]}."
        ) from None


class _Free(poutine.uncondition_messenger.UnconditionMessenger):
    """Draws the sites of these names, whatever they observe."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names, self.last = names, ""

    def _pyro_sample(self, msg: Any) -> None:
        self.last = msg["name"]
        if msg["name"] in self.names:
            super()._pyro_sample(msg)


def _place(name: str, value: Tensor, leaves: list[Any]) -> int:
    """Which argument an observed value is: the same object, or the same numbers in the same memory."""
    tensors = [(k, leaf) for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    same = [k for k, leaf in tensors if leaf is value]
    same = same or [k for k, leaf in tensors if _same_memory(leaf, value)]
    if not same:
        raise ValueError(f"site {name!r}: expected an observed value that is an argument, got another; {_WAYS_OUT}.")
    return same[0]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.numel() == b.numel() and a.data_ptr() == b.data_ptr()
    return alike and a.numel() > 0 and a.is_contiguous() and b.is_contiguous()


def _in_the_form_of(argument: Tensor, value: Tensor, name: str) -> Tensor:
    """Simulated data in the shape and dtype of the argument whose place they take."""
    if value.numel() != argument.numel():
        raise ValueError(
            f"site {name!r}: expected {argument.numel()} simulated numbers, as many as are observed, got {value.numel()}; "
            "give the distribution the batch shape of its data."
        )
    cast = value.reshape(argument.shape).to(argument.dtype)
    if not torch.equal(cast.to(value.dtype), value.reshape(argument.shape)):
        raise ValueError(
            f"site {name!r}: expected data of dtype {argument.dtype}, got draws that it does not hold; pass data of dtype "
            f"{value.dtype}."
        )
    return cast


def _check_same_model(
    model: Callable[..., Any], drawn: Trace, args: tuple[Any, ...], kwargs: dict[str, Any], left_out: set[str]
) -> None:
    """Refuse a model that is another one, given the simulated data, or that then observes what was left out."""
    again = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    for name in left_out:
        if not all(_left_out(trace.nodes[name]) for trace in (drawn, again) if name in trace):
            raise ValueError(
                f"site {name!r}: expected the same mask whatever is drawn, got one that left out all of it and then did not; "
                f"{_WAYS_OUT.split(', or')[0]}."
            )
    for name, site in sample_sites(drawn):
        if name in again.nodes and not is_auxiliary_loss(site) and not _alike(site, again.nodes[name]):
            raise ValueError(
                f"site {name!r}: expected the same distribution whatever is observed, got another for the simulated data; "
                f"{_WAYS_OUT.split(', or')[0]}."
            )


def _alike(ours: Site, theirs: Site) -> bool:
    a, b = (site["fn"].log_prob(ours["value"]) for site in (ours, theirs))
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
