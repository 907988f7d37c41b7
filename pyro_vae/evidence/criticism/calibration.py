"""Simulation-based calibration: test a guide on data simulated from the model."""

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
from pyro_vae.inference.program.traces import Program
from pyro_vae.system.randomness import own_randomness


class Coverage(NamedTuple):
    """The share of simulations whose true latent lies in the credible set.

    Attributes:
        name: Name of a latent unit, whose credible set is a central interval; or ``log q(z|x)``, for the highest-density set
            of the whole z.
        nominal: Probability of the credible set under the guide q.
        actual: Share of the simulations whose true latent lies in the credible set.
        std_error: Binomial standard error of ``actual``.
    """

    name: str
    nominal: float
    actual: float
    std_error: float


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true latents among draws from the guide.

    With L draws for each simulation, the ranks are uniform on 0 to L if the guide is the exact posterior.

    Attributes:
        ranks: Number of draws below the truth, for each of S simulations and Q quantities, shape ``(S, Q)``, int64, 0 to L.
        names: Names of the Q quantities: units of latent sites, log p(x, z), and log q(z|x) if the guide can compute it for
            every z.
        num_draws: Number of draws for each simulation, L.
        level: Probability that an exact guide passes.
    """

    ranks: Tensor
    names: tuple[str, ...]
    num_draws: int
    level: float = 0.95

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the latent units."""
        return tuple(name for name in self.names if name not in (LOG_JOINT, LOG_Q))

    @property
    def pit(self) -> Tensor:
        """Probability integral transforms, shape ``(S, Q)``, float64.

        The transform of a rank is (rank + 1/2) / (L + 1).
        """
        return (self.ranks.double() + 0.5) / (self.num_draws + 1)

    @cached_property
    def p_values(self) -> dict[str, float]:
        """Exact p-value for each quantity that its ranks are uniform.

        See :func:`uniformity_p`.
        """
        counts = (torch.bincount(column, minlength=self.num_draws + 1).numpy() for column in self.ranks.T)
        return {name: uniformity_p(c, self.num_draws) for name, c in zip(self.names, counts, strict=True)}

    @property
    def failures(self) -> tuple[str, ...]:
        """Quantities whose ranks are not uniform, the worst first.

        Holm's method ensures that an exact guide has no failure with probability at least ``level``.
        """
        order = sorted(self.names, key=lambda name: self.p_values[name])
        passed = (k for k, name in enumerate(order) if self.p_values[name] > (1 - self.level) / (len(self.names) - k))
        return tuple(order[: next(passed, len(order))])

    @property
    def passed(self) -> bool:
        """True if no quantity fails."""
        return not self.failures

    @cached_property
    def band(self) -> Band:
        """Simultaneous band for the distribution functions of all quantities' ranks.

        Bonferroni's method ensures that, for an exact guide, all functions stay inside the band with probability at least
        ``level``.
        """
        return simultaneous_band(len(self.ranks), self.num_draws, 1 - (1 - self.level) / len(self.names))

    def coverage(self, nominal: float = 0.9) -> list[Coverage]:
        """Compute the coverage of central intervals and of highest-density sets.

        Each latent unit has a central interval; the whole z has a highest-density set if log q(z|x) is known.

        Args:
            nominal: Probability of the credible sets, rounded to the nearest value that L draws allow.

        Returns:
            Coverage of each quantity at the rounded probability.

        Raises:
            ValueError: If ``nominal`` is not between 0 and 1.
        """
        if not 0 < nominal < 1:
            raise ValueError(f"nominal: expected a probability between 0 and 1, such as 0.9, got {nominal}.")
        coverages = []
        for name, column in zip(self.names, self.ranks.T, strict=True):
            if name != LOG_JOINT:
                values, size = self.credible(name, column)
                inside = max(1, min(size - 1, round(nominal * size)))
                actual = float((values < inside).double().mean())
                error = math.sqrt(actual * (1 - actual) / len(column))
                coverages.append(Coverage(name, inside / size, actual, error))
        return coverages

    def credible(self, name: str, ranks: Tensor) -> tuple[Tensor, int]:
        r"""Find the smallest of n nested credible sets that contains the truth.

        For a unit, the sets are n = (L + 1) / 2 central intervals; each ends at two draws of opposite rank. For log q(z|x), the
        sets are n = L + 1 highest-density sets. Set j has probability :math:`(j + 1) / n` under q; set 0 is the innermost.

        Args:
            name: Name of the quantity.
            ranks: Ranks of the quantity, shape ``(S,)``.

        Returns:
            Index of the smallest set that contains the truth in each simulation, shape ``(S,)``, int64, 0 to n - 1; and n.
        """
        if name == LOG_Q:
            return self.num_draws - ranks, self.num_draws + 1
        half = (self.num_draws + 1) // 2
        return half - 1 - torch.minimum(ranks, self.num_draws - ranks), half

    def fault(self, name: str) -> str:
        """Describe how a quantity's ranks fail, such as ``q is too narrow``.

        For a unit, the description names the larger of two faults, a shift and a wrong spread, each in standard errors.
        """
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
        """Describe the result of the check in sentences."""
        size = f"{len(self.ranks):,} simulations, {self.num_draws} draws each, {len(self.names)} quantities"
        if self.passed:
            return f"{size}: no evidence against q(z|x) as the posterior (smallest p {min(self.p_values.values()):.2g})"
        shown = [f"{name}: {self.fault(name)} (p {max(1e-12, self.p_values[name]):.1g})" for name in self.failures[:5]]
        more = len(self.failures) - len(shown)
        lines = [f"{size}: q(z|x) is not the posterior; {len(self.failures)} of the quantities fail", *shown]
        return "\n".join(lines + ([f"and {more} more"] if more else []))

    def to_arviz(self) -> Any:
        """Convert the transforms ``pit`` to a data container of ArviZ.

        The group is ``prior_sbc``, which ``plot_ecdf_pit`` of ArviZ 1.x reads.

        Returns:
            An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x) with the dimensions ``chain`` of size 1
            and ``draw`` of size S. There is a variable for each quantity, with the quantity's name.
        """
        return draws_group("prior_sbc", dict(zip(self.names, self.pit.T.numpy(), strict=True)))


@clear_data_errors
@torch.no_grad()
def calibrate(
    model: Program,
    guide: Program,
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
    r"""Rank the true latents of simulated data among draws from the guide.

    .. math:: z \sim p(z), \quad x \sim p(x|z), \quad z_1, \dots, z_L \sim q(z|x)

    If q(z|x) = p(z|x), then z and the draws are exchangeable. For every function f, the rank of f(x, z) among the values
    :math:`f(x, z_l)` is then uniform on 0 to L. The functions used here are each unit of z, log p(x, z), and log q(z|x). The
    units alone cannot detect a guide that ignores x: with q = p(z), the ranks of the units are uniform, but those of
    log p(x, z) are not. Ties are broken at random.

    The check judges the guide on average over data simulated from the model, not on real data. It does not detect errors that
    cancel over x in all these functions.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Positional arguments of model and guide. Only the shapes of the data matter; each call of ``simulator`` simulates
            the same number of data.
        num_simulations: Number of simulations S; the width of the band is proportional to 1 / sqrt(S).
        num_draws: Number of draws L for each simulation, odd.
        level: Probability that an exact guide passes.
        seed: Seed of all draws; the caller's generator stays unchanged. None: draws come from the caller's generator.
        plate: See ``log_weights``.
        chunk_rows: Largest product (draws * data) in one call of the model, but at least one draw; it bounds memory.
        vectorize: See ``log_weights``.
        simulator: Function called as ``simulator(model, *args, **kwargs)``, for models that :func:`simulate` cannot draw from.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        The ranks, with p-values and coverage.

    Raises:
        ValueError: If the model cannot be simulated from, model and guide do not match, ``num_draws`` is even, or a number
            is too small.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration", 2018, theorem 1; Modrák et al., "Simulation-Based Calibration Checking for Bayesian Computation: The
        Choice of Test Quantities Shapes Sensitivity", 2023, for log p(x, z); Hermans et al., "A Crisis in
        Simulation-Based Inference?", 2022, for log q(z|x) as coverage.
    """
    _check_numbers(num_simulations, num_draws, level, chunk_rows)
    ranks: list[Tensor] = []
    names: tuple[str, ...] = ()
    with own_randomness(seed) if seed is not None else nullcontext():
        while sum(map(len, ranks)) < num_simulations:
            try:
                simulated = simulator(model, *args, **kwargs)
            except ZeroDivisionError:  # raised by Pyro for an empty plate
                raise ValueError("data: expected at least one datum, got none; pass data of the right shape.") from None
            ranking = Ranking(model, guide, simulated, plate, vectorize)
            vectorize = ranking.vectorize
            names, batch = ranking.ranks(num_draws, chunk_rows)
            ranks.append(batch)
    return Calibration(torch.cat(ranks)[:num_simulations], names, num_draws, level)


def _check_numbers(num_simulations: int, num_draws: int, level: float, chunk_rows: int) -> None:
    check_counts(num_simulations=num_simulations, num_draws=num_draws, chunk_rows=chunk_rows)
    if num_draws % 2 == 0:
        raise ValueError(
            f"num_draws: expected an odd number, which makes num_draws + 1 ranks even, got {num_draws}; pass {num_draws + 1}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, such as 0.95, got {level}.")
