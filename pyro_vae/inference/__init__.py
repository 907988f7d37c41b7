"""Inference: log weights, objectives, SVI and the training loop."""

from pyro_vae.inference.bounds import Terms
from pyro_vae.inference.combined import CIWAE, MIWAE, PIWAE, RWS, TVO
from pyro_vae.inference.enumerated_elbo import TraceEnumELBO
from pyro_vae.inference.finite import NonFiniteLossError
from pyro_vae.inference.importance import IWAE, VIMCO, Renyi
from pyro_vae.inference.kl_control import Capacity, FreeBits, MinimumRate, TargetRate
from pyro_vae.inference.loop import early_stopping, fit
from pyro_vae.inference.objectives import TraceELBO, TraceMeanFieldELBO
from pyro_vae.inference.path_gradient import STL, DReG
from pyro_vae.inference.registry import OBJECTIVES, elbo
from pyro_vae.inference.structured import TraceGraphELBO
from pyro_vae.inference.svi import SVI
from pyro_vae.inference.total_correlation import TotalCorrelation, batch_weights
from pyro_vae.inference.training import LR_SCHEDULES, OPTIMIZERS, FitOptions, History, Training
from pyro_vae.inference.weights import WeightTerms, log_weights

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
