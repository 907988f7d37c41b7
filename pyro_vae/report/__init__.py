"""Pictures of a run: reconstructions, samples, latent vectors, learning curves, log p(x).

The public name and matplotlib are loaded when the name is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
