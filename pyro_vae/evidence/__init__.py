"""The marginal likelihood log p(x): estimates, their errors, and whether they can be trusted."""

from pyro_vae.evidence.diagnostics import active_units, equal_weights, kl_per_unit, pareto_k, pareto_k_threshold
from pyro_vae.evidence.estimate import Estimate, Summary
from pyro_vae.evidence.importance import importance_sampling, prior_sampling

__all__ = [
    "Estimate",
    "Summary",
    "active_units",
    "equal_weights",
    "importance_sampling",
    "kl_per_unit",
    "pareto_k",
    "pareto_k_threshold",
    "prior_sampling",
]
