"""The marginal likelihood log p(x): estimates, their errors, and whether they can be trusted.

The public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "AggregatePosterior": "aggregate",
    "AnnealedEstimate": "annealed_estimate",
    "Bracket": "bracket",
    "BracketSummary": "bracket",
    "Calibration": "calibration",
    "CapturedPath": "captured_path",
    "Comparison": "comparison",
    "Coverage": "calibration",
    "Difference": "comparison",
    "Estimate": "estimate",
    "FactorVAEScore": "disentanglement",
    "Filling": "filling",
    "Gaps": "gap_decomposition",
    "HiddenLikelihood": "filling",
    "InformationGap": "disentanglement",
    "PredictiveChecks": "predictive",
    "Refined": "refined",
    "Simulated": "simulated",
    "Summary": "estimate",
    "active_units": "diagnostics",
    "aggregate_posterior": "aggregate",
    "annealed_importance_sampling": "annealed",
    "bidirectional": "bracket",
    "bits_per_dim": "bits",
    "calibrate": "calibration",
    "compare": "comparison",
    "dequantize": "bits",
    "equal_weights": "diagnostics",
    "factor_vae_score": "disentanglement",
    "gaps": "gap_decomposition",
    "hidden_log_px": "filling",
    "importance_sampling": "importance",
    "inpaint": "filling",
    "kl_per_unit": "diagnostics",
    "mutual_information_gap": "disentanglement",
    "pareto_k": "diagnostics",
    "pareto_k_threshold": "diagnostics",
    "predictive_checks": "predictive",
    "prior_sampling": "importance",
    "refine": "refined",
    "refined_importance_sampling": "refined",
    "replicates": "predictive",
    "simulate": "simulated",
    "simulations": "predictive",
    "stacking_weights": "stacking",
}

if TYPE_CHECKING:
    from pyro_vae.evidence.aggregate import AggregatePosterior, aggregate_posterior
    from pyro_vae.evidence.annealed import annealed_importance_sampling
    from pyro_vae.evidence.annealed_estimate import AnnealedEstimate
    from pyro_vae.evidence.bits import bits_per_dim, dequantize
    from pyro_vae.evidence.bracket import Bracket, BracketSummary, bidirectional
    from pyro_vae.evidence.calibration import Calibration, Coverage, calibrate
    from pyro_vae.evidence.captured_path import CapturedPath
    from pyro_vae.evidence.comparison import Comparison, Difference, compare
    from pyro_vae.evidence.diagnostics import active_units, equal_weights, kl_per_unit, pareto_k, pareto_k_threshold
    from pyro_vae.evidence.disentanglement import (
        FactorVAEScore,
        InformationGap,
        factor_vae_score,
        mutual_information_gap,
    )
    from pyro_vae.evidence.estimate import Estimate, Summary
    from pyro_vae.evidence.filling import Filling, HiddenLikelihood, hidden_log_px, inpaint
    from pyro_vae.evidence.gap_decomposition import Gaps, gaps
    from pyro_vae.evidence.importance import importance_sampling, prior_sampling
    from pyro_vae.evidence.predictive import PredictiveChecks, predictive_checks, replicates, simulations
    from pyro_vae.evidence.refined import Refined, refine, refined_importance_sampling
    from pyro_vae.evidence.simulated import Simulated, simulate
    from pyro_vae.evidence.stacking import stacking_weights

__all__ = [
    "AggregatePosterior",
    "AnnealedEstimate",
    "Bracket",
    "BracketSummary",
    "Calibration",
    "CapturedPath",
    "Comparison",
    "Coverage",
    "Difference",
    "Estimate",
    "FactorVAEScore",
    "Filling",
    "Gaps",
    "HiddenLikelihood",
    "InformationGap",
    "PredictiveChecks",
    "Refined",
    "Simulated",
    "Summary",
    "active_units",
    "aggregate_posterior",
    "annealed_importance_sampling",
    "bidirectional",
    "bits_per_dim",
    "calibrate",
    "compare",
    "dequantize",
    "equal_weights",
    "factor_vae_score",
    "gaps",
    "hidden_log_px",
    "importance_sampling",
    "inpaint",
    "kl_per_unit",
    "mutual_information_gap",
    "pareto_k",
    "pareto_k_threshold",
    "predictive_checks",
    "prior_sampling",
    "refine",
    "refined_importance_sampling",
    "replicates",
    "simulate",
    "simulations",
    "stacking_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'pyro_vae.evidence' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pyro_vae.evidence.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
