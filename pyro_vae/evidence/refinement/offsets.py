"""The steps of a refinement: offsets that begin at 0, their optimization, and the comparison that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evidence.refinement.shifted_guide import Shift, with_covariance, zero_offsets
from pyro_vae.inference.program.checks import how_to_mark
from pyro_vae.inference.program.sites import base_name, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.system.randomness import own_randomness

Offsets = dict[str, list[Tensor]]
#: Slopes below this, in nats for a unit of an offset, are left: Adam would make steps of rounding.
_LEAST_SLOPE = 1e-3


def zero_offsets_of(draws: EnumeratedDraws, full_covariance: bool) -> Offsets:
    """Zeros for the parameters of every site that the guide draws or enumerates."""
    found: Offsets = {}
    for name, site in sample_sites(draws.guide_trace):
        if site["is_observed"] or is_auxiliary_loss(site):
            continue
        if name not in draws.sites and not site["fn"].has_rsample:
            raise ValueError(
                f"refine: expected site {name!r} to be reparameterized or enumerated, got {base_name(site['fn'])}; "
                f"{how_to_mark(name)}, or use importance_sampling."
            )
        parts = zero_offsets(with_covariance(site["fn"]) if full_covariance else site["fn"])
        if parts:
            found[name] = parts
    if not found:
        raise ValueError(
            "refine: expected a guide with parameters to move, got none: no site, or a Delta at each; use a guide with a "
            "scale, such as AutoNormal."
        )
    return found


def under(offsets: Offsets, guide: Program, full_covariance: bool, path_only: bool = False) -> Program:
    """The guide with its parameters moved by these very offsets, which may change; see :class:`Shift`."""

    def moved(*args: object, **kwargs: object) -> Any:
        with Shift(offsets, full_covariance, path_only):
            return guide(*args, **kwargs)

    return moved


def optimize(
    draws: Callable[[Program], EnumeratedDraws],
    guide: Program,
    offsets: Offsets,
    steps: int,
    lr: float,
    num_particles: int,
) -> None:
    """Move the offsets, in place, to where the ELBO of each datum is largest."""
    parts = [part.requires_grad_() for site in offsets.values() for part in site]
    optimizer = torch.optim.Adam(parts, lr, eps=_LEAST_SLOPE)
    with torch.enable_grad():
        live = draws(guide) if steps else None
        for step in range(steps):
            assert live is not None
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            terms = live(num_particles)
            loss = -(terms.log_likelihood + terms.log_ratio).mean(0).sum()
            grads = torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True)
            for part, grad in zip(parts, grads, strict=True):
                part.grad = grad.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
    for part in parts:
        part.grad = None
        part.requires_grad_(False)


def paired(start: EnumeratedDraws, moved: EnumeratedDraws, num_draws: int, chunk_rows: int) -> tuple[Tensor, Tensor]:
    """ELBO draws of both guides from the same noise, each of shape ``(K, B)``, nats, float64, on the CPU."""
    seed = int(torch.randint(2**62, ()))
    found = []
    for draws in (start, moved):
        chunk = max(1, chunk_rows // max(1, draws.data_plate.size * draws.num_values))
        sizes = [min(chunk, num_draws - done) for done in range(0, num_draws, chunk)]
        with own_randomness(seed):
            terms = [draws(size) for size in sizes]
        found.append(torch.cat([(t.log_likelihood + t.log_ratio).cpu().double() for t in terms]))
    return found[0], found[1]


def better(first: Tensor, second: Tensor) -> Tensor:
    """Where the second is larger by more than two standard errors of the mean difference: shape ``(B,)``, bool."""
    gain = second - first
    rescued = (first.mean(0) == -torch.inf) & second.mean(0).isfinite()
    return rescued | (gain.mean(0) > 2 * gain.std(0) / len(gain) ** 0.5)
