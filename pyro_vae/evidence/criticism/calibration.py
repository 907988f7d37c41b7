"""Simulation-based calibration: is q(z|x) the posterior, for data that the model itself makes?"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import check_counts, clear_data_errors
from pyro_vae.evidence.arviz_export import draws_group
from pyro_vae.evidence.criticism.ranks import LOG_JOINT, LOG_Q, Ranking
from pyro_vae.evidence.criticism.uniformity import Band, simultaneous_band, uniformity_p
from pyro_vae.evidence.simulation import Simulated, simulate
from pyro_vae.system.randomness import own_randomness


class Coverage(NamedTuple):
    """How often a credible set of q holds the latent that the datum was made from.

    Attributes:
        name: The unit whose central interval it is, or ``log q(z|x)`` for the set of highest density of all of z.
        nominal: The probability that q gives to the set.
        actual: The share of the simulations in which the latent lies in it.
        std_error: Binomial standard error of ``actual``.
    """

    name: str
    nominal: float
    actual: float
    std_error: float


@dataclass(frozen=True)
class Calibration:
    r"""Ranks of the true latents among draws from the guide; uniform where q is the exact posterior.

    Attributes:
        ranks: Of S simulations in each of Q quantities: how many of the draws lie below the truth, shape ``(S, Q)``, int64,
            0 to L.
        names: The quantities: each unit of each latent site, then log p(x, z), then log q(z|x) where the guide can say it.
        num_draws: L.
        level: The chance that a guide which is exact passes.
    """

    ranks: Tensor
    names: tuple[str, ...]
    num_draws: int
    level: float = 0.95

    @property
    def units(self) -> tuple[str, ...]:
        """The names of the latent units."""
        return tuple(name for name in self.names if name not in (LOG_JOINT, LOG_Q))

    @property
    def pit(self) -> Tensor:
        """Probability integral transforms, (rank + 1/2) / (L + 1): shape ``(S, Q)``, float64."""
        return (self.ranks.double() + 0.5) / (self.num_draws + 1)

    @cached_property
    def p_values(self) -> dict[str, float]:
        """For each quantity the exact p-value of its ranks being uniform, see :func:`uniformity_p`."""
        counts = (torch.bincount(column, minlength=self.num_draws + 1).numpy() for column in self.ranks.T)
        return {name: uniformity_p(c, self.num_draws) for name, c in zip(self.names, counts, strict=True)}

    @property
    def failures(self) -> tuple[str, ...]:
        """The quantities that are not uniform, the worst first: of an exact guide none, with probability ``level`` (Holm)."""
        order = sorted(self.names, key=lambda name: self.p_values[name])
        passed = (k for k, name in enumerate(order) if self.p_values[name] > (1 - self.level) / (len(self.names) - k))
        return tuple(order[: next(passed, len(order))])

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the guide being the posterior."""
        return not self.failures

    @cached_property
    def band(self) -> Band:
        """The band that no quantity's distribution function leaves, with probability ``level`` or more (Bonferroni)."""
        return simultaneous_band(len(self.ranks), self.num_draws, 1 - (1 - self.level) / len(self.names))

    def coverage(self, nominal: float = 0.9) -> list[Coverage]:
        """Coverage of each unit's central interval, and of the highest-density set of z where log q(z|x) is known.

        Args:
            nominal: The probability of the sets; the nearest that L draws can give is taken, and returned.

        Raises:
            ValueError: If it is not between 0 and 1.
        """
        if not 0 < nominal < 1:
            raise ValueError(f"nominal: expected a probability between 0 and 1, got {nominal}.")
        found = []
        for name, column in zip(self.names, self.ranks.T, strict=True):
            if name != LOG_JOINT:
                values, size = self.credible(name, column)
                inside = max(1, min(size - 1, round(nominal * size)))
                actual = float((values < inside).double().mean())
                error = math.sqrt(actual * (1 - actual) / len(column))
                found.append(Coverage(name, inside / size, actual, error))
        return found

    def credible(self, name: str, ranks: Tensor) -> tuple[Tensor, int]:
        r"""Which is the smallest of the nested credible sets that holds the truth: 0 is the innermost.

        For a unit the n = (L + 1) / 2 central intervals between draws of opposite rank, for log q(z|x) the n = L + 1 sets
        of highest density: set j has probability :math:`(j + 1) / n` under an exact q.

        Args:
            name: The quantity.
            ranks: Its ranks, shape ``(S,)``.

        Returns:
            The sets, shape ``(S,)``, int64, 0 to n - 1; and n.
        """
        if name == LOG_Q:
            return self.num_draws - ranks, self.num_draws + 1
        half = (self.num_draws + 1) // 2
        return half - 1 - torch.minimum(ranks, self.num_draws - ranks), half

    def fault(self, name: str) -> str:
        """What is wrong with a quantity, in words: the larger of its shift and its excess spread, each in standard errors."""
        pit = self.pit[:, self.names.index(name)]
        shift = (float(pit.mean()) - 0.5) * math.sqrt(12 * len(pit))
        spread = (float((pit - 0.5).abs().mean()) - 0.25) * math.sqrt(48 * len(pit))
        if name == LOG_JOINT:
            return f"draws of q are {'less' if shift > 0 else 'more'} probable under the model than the truth"
        if name == LOG_Q:
            return f"q is too {'narrow' if shift < 0 else 'wide'}"
        if abs(shift) > abs(spread):
            return f"q lies too {'low' if shift > 0 else 'high'}"
        return f"q is too {'narrow' if spread > 0 else 'wide'}"

    def verdict(self) -> str:
        """The result in plain sentences."""
        size = f"{len(self.ranks):,} simulations, {self.num_draws} draws each, {len(self.names)} quantities"
        if self.passed:
            return f"{size}: nothing speaks against q(z|x) being the posterior (smallest p {min(self.p_values.values()):.2g})"
        shown = [f"{name}: {self.fault(name)} (p {max(1e-12, self.p_values[name]):.1g})" for name in self.failures[:5]]
        more = len(self.failures) - len(shown)
        lines = [f"{size}: q(z|x) is not the posterior, by {len(self.failures)} of them", *shown]
        return "\n".join(lines + ([f"and {more} more"] if more else []))

    def to_arviz(self) -> Any:
        """The transforms as ArviZ's container, in the group ``prior_sbc`` that ``plot_ecdf_pit`` of ArviZ 1.x reads.

        Returns:
            An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x), with dimensions ``chain`` of 1 and
            ``draw`` of S simulations; a variable each quantity, saved by its name.
        """
        return draws_group("prior_sbc", dict(zip(self.names, self.pit.T.numpy(), strict=True)))


@clear_data_errors
@torch.no_grad()
def calibrate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: object,
    num_simulations: int = 1000,
    num_draws: int = 99,
    level: float = 0.95,
    seed: int | None = None,
    plate: str | None = None,
    chunk_rows: int = 1000,
    vectorize: bool = True,
    simulator: Callable[..., Simulated] = simulate,
    **kwargs: object,
) -> Calibration:
    r"""Rank the latents of simulated data among draws from the guide.

    .. math:: z \sim p(z), \quad x \sim p(x|z), \quad z_1, \dots, z_L \sim q(z|x)

    If q(z|x) = p(z|x), then z and the draws are exchangeable, and the rank of f(x, z) among the :math:`f(x, z_l)` is uniform
    on 0 to L for any f. Here f is each unit of z, log p(x, z), and log q(z|x): the units alone are blind to a guide that
    forgets x (q = p(z) passes them), which log p(x, z) is not. Ties are broken at random.

    It judges the guide on the model's own data, averaged over them: not on real ones, and errors that cancel over x in
    all these f stay unseen.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: Its guide.
        *args: What both take; of the data only shapes matter, and each call simulates as many.
        num_simulations: S. The band narrows as one over its root.
        num_draws: L, odd.
        level: The chance that an exact guide passes.
        seed: Seed of all draws, the caller's generator being left as it was; None: draws come from that.
        plate: See ``log_weights``.
        chunk_rows: Draws x data of one call of the model, which bounds memory; at least one draw is made a call.
        vectorize: See ``log_weights``.
        simulator: Called as ``simulator(model, *args, **kwargs)``; for models from which :func:`simulate` cannot draw.
        **kwargs: Likewise.

    Returns:
        The ranks, and what they say.

    Raises:
        ValueError: If the model cannot be simulated from, model and guide do not match, ``num_draws`` is even, or a number is
            too small.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration", 2018, theorem 1; Modrák et al., "Simulation-Based Calibration Checking for Bayesian Computation: The
        Choice of Test Quantities Shapes Sensitivity", 2023, for log p(x, z); Hermans et al., "A Crisis in
        Simulation-Based Inference?", 2022, for log q(z|x) as coverage.
    """
    _check(num_simulations, num_draws, level, chunk_rows)
    ranks: list[Tensor] = []
    names: tuple[str, ...] = ()
    with own_randomness(seed) if seed is not None else nullcontext():
        while sum(map(len, ranks)) < num_simulations:
            try:
                simulated = simulator(model, *args, **kwargs)
            except ZeroDivisionError:  # Pyro's word for an empty plate
                raise ValueError("data: expected at least one datum, got none; pass some of the right shape.") from None
            ranking = Ranking(model, guide, simulated, plate, vectorize)
            vectorize = ranking.vectorize
            names, found = ranking.ranks(num_draws, chunk_rows)
            ranks.append(found)
    return Calibration(torch.cat(ranks)[:num_simulations], names, num_draws, level)


def _check(num_simulations: int, num_draws: int, level: float, chunk_rows: int) -> None:
    check_counts(num_simulations=num_simulations, num_draws=num_draws, chunk_rows=chunk_rows)
    if num_draws % 2 == 0:
        raise ValueError(f"num_draws: expected an odd number, whose ranks pair off into intervals, got {num_draws}.")
    if not 0 < level < 1:
        raise ValueError(f"level: expected between 0 and 1, got {level}.")
