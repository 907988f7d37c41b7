"""ELBO-bound checks for any Pyro model and guide.

``pyro_vae.testing.plugin`` offers them to pytest. Nothing heavy is imported before a check runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
