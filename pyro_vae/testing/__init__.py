"""Checks that the ELBO of a Pyro program is a bound.

``pyro_vae.testing.plugin`` makes the checks a pytest fixture. Importing this package imports neither torch nor Pyro.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
