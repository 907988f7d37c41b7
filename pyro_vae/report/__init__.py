"""Pictures of a run: reconstructions, samples, latent vectors, learning curves, log p(x).

``draw_pictures`` and matplotlib are imported when ``draw_pictures`` is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
