"""The marginal likelihood log p(x): estimates, their errors, and whether they can be trusted.

The public names are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
