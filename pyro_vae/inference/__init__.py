"""Inference: log weights, objectives, SVI and the training loop."""

from pyro_vae.inference.loop import early_stopping, fit
from pyro_vae.inference.objectives import OBJECTIVES, Terms, TraceELBO, TraceMeanFieldELBO, elbo
from pyro_vae.inference.svi import SVI, NonFiniteLossError
from pyro_vae.inference.training import LR_SCHEDULES, OPTIMIZERS, FitOptions, History, Training
from pyro_vae.inference.weights import WeightTerms, log_weights

__all__ = [
    "LR_SCHEDULES",
    "OBJECTIVES",
    "OPTIMIZERS",
    "SVI",
    "FitOptions",
    "History",
    "NonFiniteLossError",
    "Terms",
    "TraceELBO",
    "TraceMeanFieldELBO",
    "Training",
    "WeightTerms",
    "early_stopping",
    "elbo",
    "fit",
    "log_weights",
]
