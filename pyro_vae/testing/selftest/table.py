"""The self-test's table: objectives and estimators beside exact values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyro
from torch import Tensor

from pyro_vae.system.randomness import own_randomness
from pyro_vae.testing.selftest.estimators import estimators
from pyro_vae.testing.selftest.linear_gaussian import HEADER, LIMIT, Line, LinearGaussianVAE
from pyro_vae.testing.selftest.objectives import objectives

__all__ = ["HEADER", "LIMIT", "WITHOUT", "chance", "data", "measure"]

#: Public names without a line in the table, and the reason. docs/testing.md lists them too.
WITHOUT = {
    "active_units": "compares given numbers with a threshold",
    "bits_per_dim": "arithmetic on a given log p(x)",
    "dequantize": "adds noise to pixels; nothing is estimated",
    "equal_weights": "compares given numbers with rounding",
    "factor_vae_score": "needs factors that are known",
    "mutual_information_gap": "needs factors that are known",
    "pareto_k": "the fit of a finite tail is biased, by an amount that is no closed form",
    "pareto_k_threshold": "a formula",
    "predictive_checks": "p-values, which are uniform only where the model's parameters were not fitted",
    "refine": "an optimization: what it is good for is the line of refined_importance_sampling",
    "scale_kl": "one side of scale_kl_pair",
    "simulations": "sets of what simulate draws",
    "stacking_weights": "a concave optimum of given numbers",
}


def measure(num_samples: int = 512, seed: int = 0, rounds: int | None = None) -> Iterator[Line]:
    """Compare each objective and estimator with its exact values.

    Args:
        num_samples: An estimator makes ``4 * num_samples`` draws for each datum.
        seed: Seed of all draws.
        rounds: Number of evaluations of an objective's bound and gradient; None: ``num_samples``, at most 300.

    Yields:
        The lines of the table.
    """
    with own_randomness(seed), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        reference = LinearGaussianVAE()
        x = data(reference)
        yield from objectives(x, rounds or min(num_samples, 300))
        # With fewer draws the fit to the tail of the weights may by chance give no standard error, and then the line fails.
        yield from estimators(reference, x, 4 * num_samples, seed)


def data(reference: LinearGaussianVAE, num_data: int = 8) -> Tensor:
    """Return the table's data, shape ``(N, 5)``, the same for every seed."""
    with own_randomness(0):
        return reference.vae.sample(num_data).detach()


def chance(lines: Iterable[Line]) -> float:
    """Return an upper bound on the probability that a correct table fails."""
    return sum(line.chance for line in lines)
