"""Variational autoencoders on Pyro, with a marginal likelihood and its error.

Each public name is imported when it is first used.
"""

import lazy_loader

from pyro_vae.system.version import package_version

__getattr__, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
__version__ = package_version()


def __dir__() -> list[str]:
    return sorted([*_names(), "__version__"])
