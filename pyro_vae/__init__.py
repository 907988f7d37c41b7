"""Variational autoencoders on Pyro, with a marginal likelihood and its error.

The public names are loaded when they are first used.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
__version__ = version("pyro-vae")


def __dir__() -> list[str]:
    return sorted([*_names(), "__version__"])
