"""The beta-VAE and the beta-TC VAE: VAEs for disentangled latent units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyro_vae.models.vae import VAE


class BetaVAE(VAE):
    r"""The beta-VAE: a VAE trained with a KL weight of 4.

    .. math:: E_q[\log p(x|z)] - \beta\, KL(q(z|x) \| p(z)), \quad \beta = 4

    The name stands for a VAE with ``--beta 4``. Another ``--beta`` replaces this default; ``--anneal`` and ``--capacity``
    work as with any model. ``fit(BetaVAE(...), data)`` equals ``fit(VAE(...), data, beta=4.0)``. The model, its evidence and
    its samples are the VAE's.

    References:
        Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", 2017, eq. 4;
        Burgess et al., "Understanding disentangling in beta-VAE", 2018, on the capacity.
    """

    #: The model's own defaults of training flags.
    defaults: ClassVar[Mapping[str, float]] = {"beta": 4.0}


class TCVAE(VAE):
    r"""The beta-TC VAE: a VAE trained with a total-correlation weight of 6.

    The name stands for a VAE with ``--elbo mean-field --total-correlation 6``. ``fit(TCVAE(...), data)`` equals
    ``fit(VAE(...), data, elbo=inference.TotalCorrelation(pv.elbo("mean-field"), 6.0, num_data=N))``. The model, its evidence
    and its samples are the VAE's.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, eq. 4.
    """

    objective: ClassVar[str | None] = "mean-field"
    #: The model's own defaults of training flags.
    defaults: ClassVar[Mapping[str, float]] = {"total_correlation": 6.0}
