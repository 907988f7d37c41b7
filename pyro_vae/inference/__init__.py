"""Inference: log weights, objectives, SVI and the training loop."""

from pyro_vae.inference.kl.floors import FreeBits, MinimumRate
from pyro_vae.inference.kl.targets import Capacity, TargetRate
from pyro_vae.inference.kl.total_correlation import TotalCorrelation, batch_weights
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.objectives.enumerated import TraceEnumELBO
from pyro_vae.inference.objectives.graph import TraceGraphELBO
from pyro_vae.inference.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, VIMCO, Renyi
from pyro_vae.inference.objectives.mean_field import TraceMeanFieldELBO
from pyro_vae.inference.objectives.path_gradient import STL, DReG
from pyro_vae.inference.objectives.registry import OBJECTIVES, elbo
from pyro_vae.inference.objectives.trace import TraceELBO
from pyro_vae.inference.objectives.wake_sleep import RWS, TVO
from pyro_vae.inference.svi.non_finite import NonFiniteLossError
from pyro_vae.inference.svi.optimizer import LR_SCHEDULES, OPTIMIZERS
from pyro_vae.inference.svi.svi import SVI
from pyro_vae.inference.training.fit import early_stopping, fit
from pyro_vae.inference.training.history import History
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.inference.training.training import Training
from pyro_vae.inference.weights.log_weights import log_weights
from pyro_vae.inference.weights.terms import WeightTerms

__all__ = [
    "CIWAE",
    "IWAE",
    "LR_SCHEDULES",
    "MIWAE",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PIWAE",
    "RWS",
    "STL",
    "SVI",
    "TVO",
    "VIMCO",
    "Capacity",
    "DReG",
    "FitOptions",
    "FreeBits",
    "History",
    "MinimumRate",
    "NonFiniteLossError",
    "Renyi",
    "TargetRate",
    "Terms",
    "TotalCorrelation",
    "TraceELBO",
    "TraceEnumELBO",
    "TraceGraphELBO",
    "TraceMeanFieldELBO",
    "Training",
    "WeightTerms",
    "batch_weights",
    "early_stopping",
    "elbo",
    "fit",
    "log_weights",
]
