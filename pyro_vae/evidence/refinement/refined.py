r"""A guide refined for one batch: the encoder's output as a start, each datum's own parameters as the end."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import check_count, check_number, clear_data_errors
from pyro_vae.evidence.estimates.diagnostics import pareto_k_threshold
from pyro_vae.evidence.estimates.estimate import Estimate
from pyro_vae.evidence.importance.importance import importance_sampling
from pyro_vae.evidence.importance.sampler import CHUNK_ROWS
from pyro_vae.evidence.refinement.offsets import Offsets, better, optimize, paired, under, zero_offsets_of
from pyro_vae.evidence.refinement.shifted_guide import Shift
from pyro_vae.inference.program.traces import Program
from pyro_vae.inference.weights.enumerated_draws import EnumeratedDraws
from pyro_vae.system.randomness import own_randomness

#: Draws of each datum from either guide, by which it is seen that a refinement left something out.
PILOT = 500
#: By how many standard errors of their difference it must then fall short.
SHORT = 3.0


@dataclass(frozen=True)
class Refined:
    r"""A guide with parameters of each datum's own, called as the guide is; tensors of shape ``(B,)``, float64, CPU.

    Good for the data that it was refined for alone. The two ELBOs come from draws that chose nothing, the same noise for
    both, so that they are unbiased, and so is their difference.

    Attributes:
        guide: The guide it was made from.
        offsets: Of each site, what its unconstrained parameters are moved by; see :func:`shifted`. 0 where not ``kept``.
        axes: Of each site, which axis of its offsets the data are on.
        elbo: ELBO of each datum under this guide, nats, higher is better.
        elbo_std_error: Its Monte Carlo standard error, nats.
        elbo_start: The same under the guide it was made from.
        improvement: Their difference, nats.
        improvement_std_error: Its Monte Carlo standard error, nats.
        full_covariance: Whether its vectors of independent normals have a covariance.
        kept: Whether the datum was given its own parameters, bool: those that were no better keep the guide's.
        steps: How many steps were made.
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

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Run the guide with the refined parameters.

        Raises:
            ValueError: If the data are not those that it was refined for, as far as their number tells.
        """
        with Shift(self.offsets, self.full_covariance):
            return self.guide(*args, **kwargs)

    def take(self, rows: Tensor) -> Refined:
        """The refined guide of some of the data, or of all in another order.

        Args:
            rows: Their places, int64.
        """
        offsets = {
            name: [part.index_select(self.axes[name], rows.to(part.device)) for part in parts]
            for name, parts in self.offsets.items()
        }
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        taken: dict[str, Any] = {n: value[rows.cpu()] for n, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, offsets=offsets, **taken)


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
    outer_scale: Any = "refuse",
    vectorize: bool = True,
    **kwargs: object,
) -> Refined:
    r"""Give each datum variational parameters of its own, started at the guide's, optimized on the ELBO.

    .. math:: \delta_i = \arg\max_\delta E_{q_\delta(z|x_i)}[\log p(x_i, z) - \log q_\delta(z|x_i)]

    where :math:`q_\delta` is the guide with its unconstrained parameters moved by :math:`\delta`: Adam, all data at once,
    its rate falling linearly to 0. No parameter of model or guide changes. Where a later site depends on an earlier
    draw, its parameters given that draw are moved, by one offset for all draws; where a site is enumerated,
    by one for all its values. A datum keeps its refined parameters only where they are better by more than two standard
    errors of a paired comparison on fresh draws.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        *args: What both take.
        steps: Steps of Adam.
        lr: Its first step size: a location moves in units of its own scale, a scale in its logarithm.
        num_particles: Draws of a step for each datum.
        full_covariance: Whether vectors of independent normals are given a covariance of their own for each datum, beyond the
            guide's family: Z^2 / 2 numbers a datum more, for a much better proposal.
        num_draws: Draws for each datum that choose, and as many that tell the two ELBOs; at least 2.
        seed: Seed of all draws, at least 0; None: from torch's generator.
        chunk_rows: Draws x data of one call of the model there; None: 1,000.
        plate: See ``log_weights``.
        outer_scale: Likewise.
        vectorize: Likewise.
        **kwargs: What model and guide take.

    Returns:
        The refined guide, with what it gained.

    Raises:
        ValueError: If the guide has no parameters to move (a Delta), draws a site that is neither reparameterized nor
            enumerated, or model and guide have no terms for each datum (see ``log_weights``).
        TypeError: If a number is of another kind.

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

    with nullcontext() if seed is None else own_randomness(_own(seed)), torch.no_grad():
        start = draws(guide)
        refuse_subsample(start)
        offsets = zero_offsets_of(start, full_covariance)
        live = under(offsets, guide, full_covariance, path_only=True)
        optimize(draws, live, offsets, steps, lr, num_particles)
        moved = draws(under(offsets, guide, full_covariance))
        before, after = (paired(start, moved, num_draws, rows) for _ in range(2))
        kept = better(*before)
        sites = start.guide_trace.nodes
        axes = {name: len(sites[name]["fn"].batch_shape) + start.data_plate.dim for name in offsets}
        for name, parts in offsets.items():
            offsets[name] = [_only(part, axes[name], kept) for part in parts]
    first, second = after[0], torch.where(kept, after[1], after[0])
    gain = second - first
    error, gain_error = (draws.std(0) / num_draws**0.5 for draws in (second, gain))
    return Refined(
        guide=guide,
        offsets=offsets,
        axes=axes,
        elbo=second.mean(0),
        elbo_std_error=error,
        elbo_start=first.mean(0),
        improvement=gain.mean(0),
        improvement_std_error=gain_error,
        kept=kept,
        steps=steps,
        full_covariance=full_covariance,
    )


@clear_data_errors
def refined_importance_sampling(
    model: Program,
    guide: Program,
    *args: object,
    steps: int = 200,
    lr: float = 0.1,
    num_particles: int = 8,
    full_covariance: bool = True,
    num_samples: int = 5000,
    **kwargs: object,
) -> Estimate:
    r"""Estimate log p(x) with a proposal refined for each datum: :func:`refine`, then :func:`importance_sampling`.

    For data whose Pareto k is bad under the guide. The ELBO likes a narrow guide: of a posterior with several modes refinement
    may keep one, and a wide guide that was a fair proposal becomes a bad one, in the worst case without any sign of it. So 500
    draws from each guide are compared, and a datum goes back to the guide it came with where that one's Pareto k is fine and
    either its ESS is the larger, or its log p(x) by more than three standard errors. Modes that neither guide finds are
    missed all the same; :func:`annealed_importance_sampling` may find them.

    The draws that estimate have chosen nothing, so that the estimate is a stochastic lower bound as always. ``elbo``,
    ``rate`` and ``distortion`` are those of the guide that was taken. The refinement draws from torch's generator: cut into
    other batches, the data get slightly other proposals.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        *args: What both take.
        steps: See :func:`refine`.
        lr: Likewise.
        num_particles: Likewise.
        full_covariance: Likewise; on here, where only the proposal counts.
        num_samples: K, draws for each datum.
        **kwargs: What both take, and the options of :func:`importance_sampling`.

    Returns:
        The estimate of each datum.

    Raises:
        ValueError: As :func:`refine` and :func:`importance_sampling`.
    """
    options, inputs = split_options(kwargs)
    own = {"steps": steps, "lr": lr, "num_particles": num_particles, "full_covariance": full_covariance}
    refined = refine_for(model, guide, args, options, inputs, **own)
    if bool(refined.kept.any()):
        refined = _without(refined, _narrowed(model, refined, args, options, inputs))
    # Of the data some rows may be taken, which then need theirs of the refined parameters.
    inputs["_rows"] = torch.arange(len(refined.kept))

    def model_of_rows(*args: object, _rows: Tensor, **kwargs: object) -> Any:
        return model(*args, **kwargs)

    def guide_of_rows(*args: object, _rows: Tensor, **kwargs: object) -> Any:
        return refined.take(_rows)(*args, **kwargs)

    return importance_sampling(model_of_rows, guide_of_rows, *args, num_samples=num_samples, **options, **inputs)


def refine_for(
    model: Program, guide: Program, args: Any, options: dict[str, Any], inputs: dict[str, Any], **own: Any
) -> Refined:
    """Refine under the options of :func:`importance_sampling`, of which :func:`refine` takes those that it has."""
    shared = {name: options[name] for name in inspect.signature(refine).parameters if name in options}
    return refine(model, guide, *args, **own, **shared, **inputs)


def _narrowed(model: Program, refined: Refined, args: Any, options: dict[str, Any], inputs: dict[str, Any]) -> Tensor:
    """For which data the guide was a better proposal before, judged on draws that enter nothing else: ``(B,)``, bool."""
    shared = {n: v for n, v in options.items() if n in ("data_ids", "chunk_rows", "plate", "outer_scale", "vectorize")}
    shared["seed"] = None if options.get("seed") is None else _own(options["seed"], b"pilot")
    first, second = (
        importance_sampling(model, guide, *args, num_samples=PILOT, **shared, **inputs)
        for guide in (refined.guide, refined)
    )
    fine, error = first.pareto_k <= pareto_k_threshold(PILOT), (first.std_error**2 + second.std_error**2).sqrt()
    return refined.kept & fine & ((first.ess > second.ess) | (first.log_px - second.log_px > SHORT * error))


def _without(refined: Refined, rows: Tensor) -> Refined:
    """The proposal with some rows as the guide has them."""
    kept = refined.kept & ~rows
    offsets = {n: [_only(part, refined.axes[n], kept) for part in parts] for n, parts in refined.offsets.items()}
    return dataclasses.replace(refined, offsets=offsets, kept=kept)


def split_options(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments that are options of :func:`importance_sampling`, and those that model and guide take."""
    parameters = inspect.signature(importance_sampling).parameters
    names = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    return {k: v for k, v in kwargs.items() if k in names}, {k: v for k, v in kwargs.items() if k not in names}


def _own(seed: int, use: bytes = b"refine") -> int:
    """A seed that no other estimator makes of this one: what is drawn later has then chosen nothing here."""
    return int(np.random.SeedSequence([seed, int.from_bytes(use)]).generate_state(1, np.uint64)[0] >> 1)


def _only(part: Tensor, axis: int, kept: Tensor) -> Tensor:
    """Offsets that are 0 for the data that are not kept."""
    shape = [1] * part.dim()
    shape[axis] = -1
    return torch.where(kept.to(part.device).reshape(shape), part, 0.0)


def refuse_subsample(draws: EnumeratedDraws) -> None:
    """Refuse a data plate that draws its rows.

    Raises:
        ValueError: If it does: what is refined would belong to other rows at the next call.
    """
    for name, site in draws.fixed.nodes.items():
        rows = site.get("fn")
        if site["type"] == "sample" and rows.subsample_size not in (None, rows.size):
            raise ValueError(
                f"plate {name!r}: expected all its data, got a subsample, another one at each call; pass the rows, without "
                "subsample_size."
            )
