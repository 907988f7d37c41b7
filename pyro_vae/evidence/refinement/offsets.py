"""Offsets that refine a guide's parameters: make, optimize and test them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.evidence.refinement.shifted_guide import Shift, with_covariance, zero_offsets
from pyro_vae.inference.program.checks import how_to_mark
from pyro_vae.inference.program.sites import base_name, is_auxiliary_loss, sample_sites
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.system.randomness import own_randomness

#: Offsets of a site's parameters, by site name.
Offsets = dict[str, list[Tensor]]
#: Adam's epsilon, nats per unit of an offset. A smaller epsilon would turn rounding errors in the gradient into steps.
_MIN_GRADIENT = 1e-3


def zero_offsets_of(draws: EnumeratedDraws, full_covariance: bool) -> Offsets:
    """Make zero offsets for every site that the guide draws or enumerates.

    Args:
        draws: Draws from the guide.
        full_covariance: Give vectors of independent normals a covariance, see :func:`with_covariance`.

    Returns:
        For each site, by name, the offsets of the parameters of the site's distribution, all 0.

    Raises:
        ValueError: If a site is neither reparameterized nor enumerated, or no site has a parameter to move.
    """
    offsets: Offsets = {}
    for name, site in sample_sites(draws.guide_trace):
        if site["is_observed"] or is_auxiliary_loss(site):
            continue
        if name not in draws.sites and not site["fn"].has_rsample:
            raise ValueError(
                f"refine: expected site {name!r} to be reparameterized or enumerated, got {base_name(site['fn'])}; "
                f"{how_to_mark(name)}, or use importance_sampling."
            )
        zeros = zero_offsets(with_covariance(site["fn"]) if full_covariance else site["fn"])
        if zeros:
            offsets[name] = zeros
    if not offsets:
        raise ValueError(
            "refine: the guide needs parameters to move, but has no sites or only Delta sites; use a guide with a scale, such "
            "as AutoNormal."
        )
    return offsets


def with_offsets(guide: Program, offsets: Offsets, full_covariance: bool, path_only: bool = False) -> Program:
    """Make a guide whose parameters are moved by offsets.

    Args:
        guide: The original guide.
        offsets: Offsets by site name. The guide reads them at each call, so later changes in place take effect.
        full_covariance: See :class:`Shift`.
        path_only: See :class:`Shift`.
    """

    def moved(*args: object, **kwargs: object) -> object:
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
    """Optimize the offsets in place to maximize the ELBO of each datum.

    Args:
        draws: Function that makes draws from a guide.
        guide: The guide whose parameters are moved by ``offsets``.
        offsets: Offsets by site name.
        steps: Number of Adam steps.
        lr: Initial step size, which falls linearly to 0.
        num_particles: Number of draws for each datum in each step.
    """
    parts = [part.requires_grad_() for site in offsets.values() for part in site]
    optimizer = torch.optim.Adam(parts, lr, eps=_MIN_GRADIENT)
    with torch.enable_grad():
        guide_draws = draws(guide) if steps else None
        for step in range(steps):
            assert guide_draws is not None
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            terms = guide_draws(num_particles)
            loss = -(terms.log_likelihood + terms.log_ratio).mean(0).sum()
            grads = torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True)
            for part, grad in zip(parts, grads, strict=True):
                part.grad = grad.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
    for part in parts:
        part.grad = None
        part.requires_grad_(False)


def paired_elbos(
    start: EnumeratedDraws, moved: EnumeratedDraws, num_draws: int, chunk_rows: int
) -> tuple[Tensor, Tensor]:
    """Estimate the ELBOs of two guides from draws with shared noise.

    Args:
        start: Draws from the guide.
        moved: Draws from the guide with offsets.
        num_draws: Number of draws K for each datum.
        chunk_rows: Largest product (draws * data) in one call of the model.

    Returns:
        Two tensors, one for each guide: the one-draw ELBO estimates, shape ``(K, B)`` for B data, nats, float64, CPU.
    """
    seed = int(torch.randint(2**62, ()))
    elbos = []
    for draws in (start, moved):
        chunk = max(1, chunk_rows // max(1, draws.data_plate.size * draws.num_values))
        sizes = [min(chunk, num_draws - done) for done in range(0, num_draws, chunk)]
        with own_randomness(seed):
            terms = [draws(size) for size in sizes]
        elbos.append(torch.cat([(t.log_likelihood + t.log_ratio).cpu().double() for t in terms]))
    return elbos[0], elbos[1]


def clearly_larger(first: Tensor, second: Tensor) -> Tensor:
    r"""Test if the second of two paired samples has the larger mean.

    .. math:: \bar d > 2 s_d / \sqrt K, \quad d_k = \text{second}_k - \text{first}_k

    where :math:`\bar d` and :math:`s_d` are the mean and the standard deviation of the K differences of one datum. A datum
    also passes if the first mean is minus infinity and the second is finite.

    Args:
        first: First sample of each of B data, shape ``(K, B)``.
        second: Second sample of each datum, shape ``(K, B)``.

    Returns:
        True for data that pass, shape ``(B,)``, bool.
    """
    gain = second - first
    rescued = (first.mean(0) == -torch.inf) & second.mean(0).isfinite()
    return rescued | (gain.mean(0) > 2 * gain.std(0) / len(gain) ** 0.5)
