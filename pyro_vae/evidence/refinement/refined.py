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

    It is called like the guide, but only with the data that it was refined for. Fresh draws with shared noise estimate both
    ELBOs, so each ELBO is unbiased, and so is the difference. Tensors have shape ``(B,)``, float64, on the CPU.

    Attributes:
        guide: The original guide.
        offsets: Offsets of the unconstrained parameters by site name, see :func:`shifted`; 0 for data that are not ``kept``.
        axes: Data axis of the offsets by site name.
        elbo: ELBO of each datum under this guide, nats, higher is better.
        elbo_std_error: Monte Carlo standard error of ``elbo``, nats.
        elbo_start: ELBO of each datum under ``guide``, nats.
        improvement: ``elbo - elbo_start``, nats.
        improvement_std_error: Monte Carlo standard error of ``improvement``, nats.
        kept: True if the datum has refined parameters, bool; False if they were no better and the guide's parameters stay.
        steps: Number of optimization steps.
        full_covariance: True if vectors of independent normals have a covariance.
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
            ValueError: If the number of data differs from that of the refinement.
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
        """Return the guide with original parameters where ``kept`` is False.

        Args:
            kept: True for data that keep their refined parameters, shape ``(B,)``, bool.
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

    where :math:`q_\delta` is the guide with its unconstrained parameters moved by :math:`\delta`. Adam starts at
    :math:`\delta = 0`, moves all data at once, and its step size falls linearly to 0. No parameter of model or guide
    changes. If the parameters of a site depend on an earlier draw, all draws share one offset. If a site is enumerated, all
    values share one offset. A datum keeps its refined parameters only if they are better by more than two standard errors in a
    paired comparison on fresh draws.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Positional arguments of model and guide.
        steps: Number of Adam steps.
        lr: Initial step size. A location moves in units of its own scale, a scale in its logarithm.
        num_particles: Number of draws for each datum in one step.
        full_covariance: Give vectors of independent normals their own covariance for each datum, beyond the guide's family:
            Z^2 / 2 more numbers for each datum, and a much better proposal.
        num_draws: Number of draws for each datum in the paired comparison, at least 2. As many more draws estimate the two
            ELBOs.
        seed: Seed of all draws, at least 0; None: draws come from torch's generator.
        chunk_rows: Largest number of draws x data in one call of the model in the comparison; None: 1,000.
        plate: See ``log_weights``.
        outer_scale: See ``log_weights``.
        vectorize: See ``log_weights``.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        The refined guide, with its gain in ELBO.

    Raises:
        ValueError: If the guide has no parameters to move (a Delta), draws a site that is neither reparameterized nor
            enumerated, or model and guide have no terms for each datum (see ``log_weights``).
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
    """Map each site to the data axis of its offsets."""
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
    """Make the refined guide from ELBO draws before and after refinement.

    Each of ``elbos`` has shape ``(K, B)``.
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
    """Derive a seed that no other estimator derives from ``seed``.

    Later draws seeded with ``seed`` are then independent of the draws made here.
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
        ValueError: If the plate subsamples: refined parameters would belong to different rows at the next call.
    """
    for name, site in draws.fixed.nodes.items():
        rows = site.get("fn")
        if site["type"] == "sample" and rows.subsample_size not in (None, rows.size):
            raise ValueError(
                f"plate {name!r}: expected all data, got a new subsample at each call; pass the rows without subsample_size."
            )
