"""Data that a model made, with the latents that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.errors import clear_data_errors
from pyro_vae.inference.program.sites import Site, is_auxiliary_loss, sample_sites

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


@clear_data_errors
@torch.no_grad()
def simulate(model: Callable[..., Any], *args: object, **kwargs: object) -> Simulated:
    r"""Draw as many data as are given from the model, with their latents.

    .. math:: z_i \sim p(z), \quad x_i \sim p(x | z_i)

    Since (z, x) is drawn from the joint, z is a draw from the exact posterior p(z|x). Of the data given, only shapes
    matter, and what a mask leaves out. Draws come from the global generator.

    What a mask leaves out of an observed site, as ``obs_mask`` leaves out labels that are unknown, is no observation: its
    factor in p(x, z) is 1, so that the joint is that of the rest. Its value stays what it is, -1 or NaN say, and so must the
    mask: one that is made of the data, ``x >= 0``, holds only if it is the same for all that the model can draw.

    Args:
        model: A Pyro model; each of its observed values is one of its arguments, in whatever shape, or equal to it wherever it
            is observed, as ``y.clamp(min=0)`` is to y. It enters the model in no other way.
        *args: What it takes.
        **kwargs: Likewise.

    Returns:
        Arguments with simulated data, and the latents.

    Raises:
        ValueError: If an observed value is no argument of the model, the model depends on it otherwise (so that it would
            be another model for the simulated data), a site cannot be drawn from, or a mask depends on draws.
    """
    given = poutine.trace(model).get_trace(*args, **kwargs)
    scored = {n: s for n, s in sample_sites(given) if s["is_observed"] and not is_auxiliary_loss(s)}
    observed = {n: s for n, s in scored.items() if bool(_seen(s).any())}
    if not observed:
        got = "none" if not scored else f"{sorted(scored)} with a mask that leaves out all of it"
        raise ValueError(f"model: expected an observed site, got {got}; pass the data by obs=... or pyro.condition.")
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    places = {name: _place(name, site, leaves) for name, site in observed.items()}
    drawn = _drawn(model, set(observed), args, kwargs)
    for name, place in places.items():
        leaves[place] = _in_the_form_of(leaves[place], drawn.nodes[name], name)
    new_args, new_kwargs = _pytree.tree_unflatten(leaves, spec)
    latents = {n: s["value"] for n, s in sample_sites(drawn) if n not in observed and not s["is_observed"]}
    again = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*new_args, **new_kwargs)
    _check_same_masks(given, drawn, again, set(scored))
    _check_same_model(drawn, again, set(observed))
    return Simulated(new_args, new_kwargs, latents)


def _seen(site: Site) -> Tensor:
    """What the masks of a site and of its distribution leave in, entry by entry: bool, broadcasts to the site's value."""
    fn = site["fn"]
    masks = [(site["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        masks.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    seen = torch.ones((), dtype=torch.bool, device=site["value"].device)
    for mask, event_dim in masks:
        if mask is not None:
            mask = torch.as_tensor(mask, device=seen.device).bool()
            seen = seen & mask.reshape(mask.shape + (1,) * event_dim)
    return seen


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
    """Draws the sites of these names, whatever they observe, save what a mask leaves out."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names, self.last = names, ""
        self._given: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.last = msg["name"]
        if msg["name"] in self.names:
            self._given[msg["name"]] = msg["value"]
            super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not bool((seen := _seen(msg)).all()):
            msg["value"] = torch.where(seen, msg["value"], self._given[msg["name"]].to(msg["value"].dtype))


def _place(name: str, site: Site, leaves: list[Any]) -> int:
    """Which argument an observed value is: the same object, or the same numbers in the same memory, or its equal."""
    value, seen = site["value"], _seen(site)
    tensors = [(k, leaf) for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    same = [k for k, leaf in tensors if leaf is value]
    same = same or [k for k, leaf in tensors if _same_memory(leaf, value)]
    if not same:
        same = [k for k, leaf in tensors if _equal(leaf, value, seen)]
        same = same if len(same) == 1 else []  # of two that are equal either could be it
    if not same:
        raise _no_argument(name)
    return same[0]


def _no_argument(name: str) -> ValueError:
    return ValueError(f"site {name!r}: expected an observed value that is an argument, got another; {_WAYS_OUT}.")


def _equal(a: Tensor, b: Tensor, seen: Tensor) -> bool:
    """Whether two tensors are alike, with the same numbers wherever they are seen."""
    alike = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
    return alike and a.numel() > 0 and bool(((a == b) | ~seen).all())


def _same_memory(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.numel() == b.numel() and a.data_ptr() == b.data_ptr()
    return alike and a.numel() > 0 and a.is_contiguous() and b.is_contiguous()


def _in_the_form_of(argument: Tensor, site: Site, name: str) -> Tensor:
    """Simulated data in the shape and dtype of the argument whose place they take, which keeps what a mask leaves out."""
    value = site["value"]
    if value.numel() != argument.numel():
        raise ValueError(
            f"site {name!r}: expected {argument.numel()} simulated numbers, as many as are observed, got {value.numel()}; "
            "give the distribution the batch shape of its data."
        )
    seen = _seen(site).expand(value.shape).reshape(argument.shape)
    value = value.reshape(argument.shape)
    cast = torch.where(seen, value.to(argument.dtype), argument)
    if not torch.equal(cast.to(value.dtype)[seen], value[seen]):
        raise ValueError(
            f"site {name!r}: expected data of dtype {argument.dtype}, got draws that it does not hold; pass data of dtype "
            f"{value.dtype}."
        )
    return cast


def _check_same_masks(given: Trace, drawn: Trace, again: Trace, scored: set[str]) -> None:
    """Refuse masks that are others for the simulated data: another model, or one that observes something else."""
    for name, site in sample_sites(drawn):
        others = [trace.nodes[name] for trace in (given, again) if name in trace.nodes]
        others = (
            others if name in scored else others[-1:]
        )  # a latent's may follow draws of latents, which are again's too
        if not is_auxiliary_loss(site) and not all(_same(_seen(site), _seen(other)) for other in others):
            raise ValueError(
                f"site {name!r}: expected the same mask whatever is drawn, got another for the simulated data; pass the mask "
                "as an argument of its own, or posterior_draws for data of your own."
            )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*torch.broadcast_tensors(a, b))


def _check_same_model(drawn: Trace, again: Trace, observed: set[str]) -> None:
    """Refuse a model that is another one, given the simulated data, or that does not observe them as they were drawn."""
    for name, site in sample_sites(drawn):
        if name not in again.nodes or is_auxiliary_loss(site):
            continue
        if name in observed and not _holds(site, again.nodes[name]["value"]):
            raise _no_argument(name)
        if not _alike(site, again.nodes[name]):
            raise ValueError(
                f"site {name!r}: expected the same distribution whatever is observed, got another for the simulated data; "
                f"{_WAYS_OUT.split(', or')[0]}."
            )


def _holds(site: Site, value: Tensor) -> bool:
    """Whether a value is the one that was drawn, wherever it is seen; up to the argument's dtype, which may be coarser."""
    seen = _seen(site).expand(site["value"].shape).reshape(-1)
    return torch.equal(site["value"].to(value.dtype).reshape(-1)[seen], value.reshape(-1)[seen])


def _alike(ours: Site, theirs: Site) -> bool:
    a, b = (site["fn"].log_prob(ours["value"]) for site in (ours, theirs))
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
