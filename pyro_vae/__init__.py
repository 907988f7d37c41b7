"""Variational autoencoders on Pyro: models, objectives, and a marginal likelihood with an error bar.

The public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "SVI": "pyro_vae.inference.svi",
    "VAE": "pyro_vae.models.vae",
    "elbo": "pyro_vae.inference.registry",
    "fit": "pyro_vae.inference.loop",
    "load": "pyro_vae.runs",
    "log_weights": "pyro_vae.inference.weights",
}
_MODULES = ["data", "distributions", "evidence", "handlers", "inference", "models", "networks", "report", "schedules"]
_MODULES += ["testing"]

__all__ = ["SVI", "VAE", "__version__", "data", "distributions", "elbo", "evidence", "fit", "handlers", "inference"]
__all__ += ["load", "log_weights", "models", "networks", "report", "schedules", "testing"]

if TYPE_CHECKING:
    from pyro_vae import (
        data,
        distributions,
        evidence,
        handlers,
        inference,
        models,
        networks,
        report,
        schedules,
        testing,
    )
    from pyro_vae.inference.loop import fit
    from pyro_vae.inference.registry import elbo
    from pyro_vae.inference.svi import SVI
    from pyro_vae.inference.weights import log_weights
    from pyro_vae.models.vae import VAE
    from pyro_vae.runs import load


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pyro_vae.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
