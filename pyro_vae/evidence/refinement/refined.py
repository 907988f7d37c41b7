"""A guide refined for one batch, with parameters for each datum."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import check_count, check_number, clear_data_errors
from pyro_vae.evidence.importance.sampler import CHUNK_ROWS
from pyro_vae.evidence.refinement.offsets import (
    Offsets,
    clearly_larger,
    optimize,
    paired_elbos,
    with_offsets,
    zero_offsets_of,
)
from pyro_vae.evidence.refinement.shifted_guide import Shift
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.system.randomness import own_randomness


@dataclass(frozen=True)
class Refined:
    """A guide with its own parameters for each datum.

    Call the refined guide like the original guide, but only with the B data that it was refined for. The ELBOs of both guides
    are estimated from fresh draws with shared noise, so both estimates and their difference are unbiased. Tensors without
    another shape have shape ``(B,)``, float64, on the CPU.

    Attributes:
        guide: The original guide.
        offsets: Offsets of the unconstrained parameters by site name, see :func:`shifted`; 0 for data that are not ``kept``.
        axes: The axis of each site's offsets that runs over the data, by site name.
        elbo: ELBO of each datum under the refined guide, nats, higher is better.
        elbo_std_error: Monte Carlo standard error of ``elbo``, nats.
        elbo_start: ELBO of each datum under the original guide, nats.
        improvement: ``elbo - elbo_start``, nats.
        improvement_std_error: Monte Carlo standard error of ``improvement``, nats.
        kept: True for data that use the refined parameters, bool; False for data that use the original guide's parameters,
            because the refined parameters were no better.
        steps: Number of optimization steps.
        full_covariance: True if vectors of independent normals were given a covariance.
    """

    guide: Program
    offsets: Offsets
    axes: dict[str, int]
    elbo: Tensor
    elbo_std_error: Tensor
    elbo_start: Tensor
    improvement: Tensor
    improvement_std_error: Tensor
    kept: Tensor
    steps: int
    full_covariance: bool = False

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the guide with the refined parameters.

        Raises:
            ValueError: If the guide was refined for a different number of data.
        """
        with Shift(self.offsets, self.full_covariance):
            return self.guide(*args, **kwargs)

    def take(self, rows: Tensor) -> Refined:
        """Return the refined guide for selected data, in any order.

        Args:
            rows: Indices of the data, int64.
        """
        offsets = {
            name: [part.index_select(self.axes[name], rows.to(part.device)) for part in parts]
            for name, parts in self.offsets.items()
        }
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        taken = {name: value[rows.cpu()] for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **{**values, **taken, "offsets": offsets})

    def keeping(self, kept: Tensor) -> Refined:
        """Return the guide with the original parameters for data not kept.

        Args:
            kept: True for data that keep their refined parameters, shape ``(B,)`` for B data, bool.
        """
        return dataclasses.replace(self, offsets=_zero_unless(kept, self.offsets, self.axes), kept=kept)


@clear_data_errors
def refine(
    model: Program,
    guide: Program,
    *args: object,
    steps: int = 200,
    lr: float = 0.1,
    num_particles: int = 4,
    full_covariance: bool = False,
    num_draws: int = 200,
    seed: int | None = None,
    chunk_rows: int | None = None,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    vectorize: bool = True,
    **kwargs: object,
) -> Refined:
    r"""Optimize the guide's variational parameters for each datum separately.

    .. math:: \delta_i = \arg\max_\delta E_{q_\delta(z|x_i)}[\log p(x_i, z) - \log q_\delta(z|x_i)]

    where :math:`q_\delta` is the guide with its unconstrained parameters moved by the offset :math:`\delta`. Adam starts at
    :math:`\delta = 0` and optimizes the offsets of all data at once; its step size falls linearly to 0. The parameters of
    model and guide themselves do not change. If the parameters of a site depend on an earlier draw, all draws share one
    offset. If a site is enumerated, all its values share one offset. A datum keeps the refined parameters only if their ELBO
    is higher by more than two standard errors in a paired comparison on fresh draws.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Positional arguments of model and guide.
        steps: Number of Adam steps.
        lr: Initial step size. A location moves in units of the distribution's scale; a scale moves in its logarithm.
        num_particles: Number of draws for each datum in each step.
        full_covariance: Give vectors of Z independent normals a covariance for each datum. The refined guide then leaves the
            guide's family, and is a much better proposal; each datum has about Z^2 / 2 more numbers.
        num_draws: Number of draws for each datum in the paired comparison, at least 2. Afterwards, the same number of new
            draws estimates both ELBOs.
        seed: Seed of all draws, at least 0; None: draws come from torch's generator.
        chunk_rows: Largest product (draws * data) in one call of the model during the comparison; None: 1,000.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        The refined guide, with its gain in ELBO.

    Raises:
        ValueError: If the guide has no parameters to move (as a Delta guide), if it draws a site that is neither
            reparameterized nor enumerated, or if log p(x, z) or log q(z|x) does not split into a term for each datum (see
            ``log_weights``).
        TypeError: If a number has the wrong type.

    References:
        Kim, Wiseman, Miller, Sontag, Rush, "Semi-Amortized Variational Autoencoders", 2018; Cremer, Li, Duvenaud,
        "Inference Suboptimality in Variational Autoencoders", 2018, section 5.2.
    """
    check_count("steps", steps, least=0)
    check_count("num_particles", num_particles)
    check_count("num_draws", num_draws, least=2)
    check_count("chunk_rows", rows := chunk_rows or CHUNK_ROWS)
    check_count("seed", seed or 0, least=0)
    check_number("lr", lr, lambda value: value > 0, "a positive number")

    def draws(guide: Program) -> EnumeratedDraws:
        return EnumeratedDraws(model, guide, args, kwargs, plate, outer_scale, vectorize)

    with nullcontext() if seed is None else own_randomness(derived_seed(seed)), torch.no_grad():
        start = draws(guide)
        refuse_subsample(start)
        offsets = zero_offsets_of(start, full_covariance)
        trained = with_offsets(guide, offsets, full_covariance, path_only=True)
        optimize(draws, trained, offsets, steps, lr, num_particles)
        moved = draws(with_offsets(guide, offsets, full_covariance))
        choosing, judging = (paired_elbos(start, moved, num_draws, rows) for _ in range(2))
        kept, axes = clearly_larger(*choosing), _data_axes(start, offsets)
        elbos = judging[0], torch.where(kept, judging[1], judging[0])
        return _refined(guide, _zero_unless(kept, offsets, axes), axes, kept, elbos, steps, full_covariance)


def _data_axes(draws: EnumeratedDraws, offsets: Offsets) -> dict[str, int]:
    """For each site, find the axis of the offsets over the data."""
    sites = draws.guide_trace.nodes
    return {name: len(sites[name]["fn"].batch_shape) + draws.data_plate.dim for name in offsets}


def _refined(
    guide: Program,
    offsets: Offsets,
    axes: dict[str, int],
    kept: Tensor,
    elbos: tuple[Tensor, Tensor],
    steps: int,
    full_covariance: bool,
) -> Refined:
    """Make the refined guide with the statistics of its ELBO.

    ``elbos`` are the ELBO estimates of the original and of the refined guide, shape ``(K, B)`` each, for K draws and B data.
    """
    start, end = elbos
    gain = end - start
    error, gain_error = (draws.std(0) / len(start) ** 0.5 for draws in (end, gain))
    return Refined(
        guide=guide,
        offsets=offsets,
        axes=axes,
        elbo=end.mean(0),
        elbo_std_error=error,
        elbo_start=start.mean(0),
        improvement=gain.mean(0),
        improvement_std_error=gain_error,
        kept=kept,
        steps=steps,
        full_covariance=full_covariance,
    )


def derived_seed(seed: int, use: bytes = b"refine") -> int:
    """Derive a new seed from a user's seed, different for each ``use``.

    Draws made with the derived seed are independent of draws that another estimator makes with ``seed``.
    """
    return int(np.random.SeedSequence([seed, int.from_bytes(use)]).generate_state(1, np.uint64)[0] >> 1)


def _zero_unless(kept: Tensor, offsets: Offsets, axes: dict[str, int]) -> Offsets:
    """Set the offsets of data that are not kept to 0."""

    def zeroed(part: Tensor, axis: int) -> Tensor:
        shape = [1] * part.dim()
        shape[axis] = -1
        return torch.where(kept.to(part.device).reshape(shape), part, 0.0)

    return {name: [zeroed(part, axes[name]) for part in parts] for name, parts in offsets.items()}


def refuse_subsample(draws: EnumeratedDraws) -> None:
    """Refuse a data plate that draws a subsample of its rows.

    Raises:
        ValueError: If the plate subsamples. The next call would apply the refined parameters to other rows.
    """
    for name, site in draws.fixed.nodes.items():
        rows = site.get("fn")
        if site["type"] == "sample" and rows.subsample_size not in (None, rows.size):
            raise ValueError(
                f"plate {name!r}: expected all data, got a new subsample at each call; pass the rows without subsample_size."
            )
