"""Data simulated from a model, together with the latents that generated them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.utils import _pytree

from pyro_vae.errors import clear_data_errors
from pyro_vae.inference.program.sites import Site, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Program

_PASS_DRAWS = "pass posterior_draws for your own data"
_PASS_DRAWS_OR_ARGUMENT = f"{_PASS_DRAWS}, or give the model the observed value as an argument"


class Simulated(NamedTuple):
    """Simulated data and the latents that generated them.

    The latents are one exact draw from the posterior of each datum.

    Attributes:
        args: Positional arguments of the model, with simulated data in place of the observed values.
        kwargs: Keyword arguments of the model, with the same replacement.
        latents: Draw z of each latent site, by the name of the site, in the shape that the site draws.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    latents: dict[str, Tensor]


@clear_data_errors
@torch.no_grad()
def simulate(model: Program, *args: object, **kwargs: object) -> Simulated:
    r"""Simulate data from the model, with their latents.

    .. math:: z_i \sim p(z), \quad x_i \sim p(x | z_i)

    Since (z, x) is a draw from the joint distribution, z is a draw from the exact posterior p(z|x). There are as many simulated
    data as given data. Of the given data, only the shapes and the masked entries matter. Draws come from torch's global
    generator.

    Entries of an observed site that a mask leaves out (unknown labels under ``obs_mask``, for example) are not observed: their
    factor in p(x, z) is 1, and the joint distribution is that of the unmasked entries. Masked entries keep their value, such
    as -1 or NaN. The mask must not change: a mask computed from the data, such as ``x >= 0``, works only if it is the same for
    all data that the model can draw.

    Args:
        model: A Pyro model. Each observed value is an argument of the model, in any shape, or equals an argument in all
            unmasked entries, as ``y.clamp(min=0)`` equals y. The data must enter the model in no other way.
        *args: Positional arguments of the model.
        **kwargs: Keyword arguments of the model.

    Returns:
        The arguments with simulated data, and the latents.

    Raises:
        ValueError: If an observed value is not an argument of the model; if the model depends on the data in another way, so
            that simulated data change the model; if a site cannot be drawn from; or if a mask depends on draws.
    """
    given = poutine.trace(model).get_trace(*args, **kwargs)
    scored = {n: s for n, s in sample_sites(given) if s["is_observed"] and not is_auxiliary_loss(s)}
    observed = {n: s for n, s in scored.items() if bool(_unmasked(s).any())}
    if not observed:
        got = "none" if not scored else f"only fully masked sites {sorted(scored)}"
        raise ValueError(f"model: expected an observed site, got {got}; pass the data by obs=... or pyro.condition.")
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    positions = {name: _find_argument(name, site, leaves) for name, site in observed.items()}
    drawn = _trace_joint_draw(model, set(observed), args, kwargs)
    for name, position in positions.items():
        leaves[position] = _as_argument(drawn.nodes[name], leaves[position], name)
    new_args, new_kwargs = _pytree.tree_unflatten(leaves, spec)
    latents = {n: s["value"] for n, s in sample_sites(drawn) if n not in observed and not s["is_observed"]}
    replayed = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*new_args, **new_kwargs)
    _check_same_masks(given, drawn, replayed, set(scored))
    _check_same_model(drawn, replayed, set(observed))
    return Simulated(new_args, new_kwargs, latents)


def _unmasked(site: Site) -> Tensor:
    """Find the entries of a site that no mask leaves out.

    Both the mask of the site and the mask of the site's distribution count.

    Returns:
        True for unmasked entries, bool, in a shape that broadcasts to the site's value.
    """
    fn = site["fn"]
    masks = [(site["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        masks.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    unmasked = torch.ones((), dtype=torch.bool, device=site["value"].device)
    for mask, event_dim in masks:
        if mask is not None:
            mask = torch.as_tensor(mask, device=unmasked.device).bool()
            unmasked = unmasked & mask.reshape(mask.shape + (1,) * event_dim)
    return unmasked


def _trace_joint_draw(model: Program, observed: set[str], args: Args, kwargs: Kwargs) -> Trace:
    """Trace one joint draw of latents and observed sites."""
    draw_observed = _DrawObserved(observed)
    try:
        with draw_observed:
            return poutine.trace(model).get_trace(*args, **kwargs)
    except NotImplementedError:
        raise ValueError(
            f"site {draw_observed.last_site!r}: expected a distribution that can be sampled, got one that cannot (a "
            f"pyro.factor?); {_PASS_DRAWS}."
        ) from None


class _DrawObserved(poutine.uncondition_messenger.UnconditionMessenger):
    """Messenger that draws observed sites instead of observing them.

    Masked entries keep the observed value.

    Args:
        names: Names of the sites to draw.

    Attributes:
        last_site: Name of the site that was reached last.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names, self.last_site = names, ""
        self._observed_values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        self.last_site = msg["name"]
        if msg["name"] in self.names:
            self._observed_values[msg["name"]] = msg["value"]
            super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.names and not bool((unmasked := _unmasked(msg)).all()):
            observed = self._observed_values[msg["name"]].to(msg["value"].dtype)
            msg["value"] = torch.where(unmasked, msg["value"], observed)


def _find_argument(name: str, site: Site, leaves: list[object]) -> int:
    """Find the argument that a site observes.

    The argument is the observed value itself, or shares memory with that value, or else is the only argument with equal
    numbers.

    Returns:
        Position of the argument in ``leaves``.
    """
    value, unmasked = site["value"], _unmasked(site)
    tensors = [(k, leaf) for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    matches = [k for k, leaf in tensors if leaf is value]
    matches = matches or [k for k, leaf in tensors if _share_memory(leaf, value)]
    if not matches:
        matches = [k for k, leaf in tensors if _equal_where(unmasked, leaf, value)]
        matches = matches if len(matches) == 1 else []  # several equal arguments are ambiguous
    if not matches:
        raise _not_an_argument(name)
    return matches[0]


def _not_an_argument(name: str) -> ValueError:
    return ValueError(f"site {name!r}: the observed value must be an argument of the model; {_PASS_DRAWS_OR_ARGUMENT}.")


def _equal_where(unmasked: Tensor, a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors are equal in all unmasked entries.

    Shape, dtype and device must be equal too.
    """
    same_form = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
    return same_form and a.numel() > 0 and bool(((a == b) | ~unmasked).all())


def _share_memory(a: Tensor, b: Tensor) -> bool:
    same_memory = a.dtype == b.dtype and a.numel() == b.numel() and a.data_ptr() == b.data_ptr()
    return same_memory and a.numel() > 0 and a.is_contiguous() and b.is_contiguous()


def _as_argument(site: Site, argument: Tensor, name: str) -> Tensor:
    """Convert a site's simulated data to the argument's shape and dtype.

    Masked entries keep the value of the argument.
    """
    value = site["value"]
    if value.numel() != argument.numel():
        raise ValueError(
            f"site {name!r}: expected {argument.numel()} simulated numbers, as many as observed numbers, got {value.numel()}; "
            "give the distribution the batch shape of its data."
        )
    unmasked = _unmasked(site).expand(value.shape).reshape(argument.shape)
    value = value.reshape(argument.shape)
    simulated = torch.where(unmasked, value.to(argument.dtype), argument)
    if not torch.equal(simulated.to(value.dtype)[unmasked], value[unmasked]):
        raise ValueError(
            f"site {name!r}: expected data in a dtype that can represent the draws, got {argument.dtype}; pass data of dtype "
            f"{value.dtype}."
        )
    return simulated


def _check_same_masks(given: Trace, drawn: Trace, replayed: Trace, scored: set[str]) -> None:
    """Refuse masks that change with the simulated data."""
    for name, site in sample_sites(drawn):
        others = [trace.nodes[name] for trace in (given, replayed) if name in trace.nodes]
        if name not in scored:  # a latent's mask may follow draws of other latents, which the replayed trace shares
            others = others[-1:]
        if not is_auxiliary_loss(site) and not all(_equal_masks(site, other) for other in others):
            raise ValueError(
                f"site {name!r}: expected a fixed mask, got a mask that changes with the simulated data; pass the mask "
                "as an argument, or posterior_draws for your own data."
            )


def _equal_masks(site: Site, other: Site) -> bool:
    return torch.equal(*torch.broadcast_tensors(_unmasked(site), _unmasked(other)))


def _check_same_model(drawn: Trace, replayed: Trace, observed: set[str]) -> None:
    """Check that the model observes the simulated data and otherwise ignores them."""
    for name, site in sample_sites(drawn):
        if name not in replayed.nodes or is_auxiliary_loss(site):
            continue
        if name in observed and not _observes_its_draw(site, replayed.nodes[name]["value"]):
            raise _not_an_argument(name)
        if not _close_log_probs(site, replayed.nodes[name]):
            raise ValueError(
                f"site {name!r}: expected a distribution that does not depend on the data, got one that changes with the "
                f"simulated data; {_PASS_DRAWS}."
            )


def _observes_its_draw(site: Site, value: Tensor) -> bool:
    """Return True if a site's draws equal ``value`` in unmasked entries.

    The entries are compared in the argument's dtype, which may be coarser.
    """
    unmasked = _unmasked(site).expand(site["value"].shape).reshape(-1)
    return torch.equal(site["value"].to(value.dtype).reshape(-1)[unmasked], value.reshape(-1)[unmasked])


def _close_log_probs(site: Site, other: Site) -> bool:
    """Return True if two sites give the same log-probabilities to one value."""
    a, b = (each["fn"].log_prob(site["value"]) for each in (site, other))
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
