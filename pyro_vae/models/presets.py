"""VAEs with other weights of the KL, for disentangled units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyro_vae.models.vae import VAE


class BetaVAE(VAE):
    r"""The beta-VAE: a VAE trained with a KL of weight 4.

    .. math:: E_q[\log p(x|z)] - \beta\, KL(q(z|x) \| p(z)), \quad \beta = 4

    It is a name for ``--beta 4``; another ``--beta`` replaces that, and ``--anneal`` and ``--capacity`` work as with any
    model. ``fit(BetaVAE(...), data)`` equals ``fit(VAE(...), data, beta=4.0)``. The model, its evidence and its samples are
    the VAE's.

    References:
        Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", 2017, eq. 4;
        Burgess et al., "Understanding disentangling in beta-VAE", 2018, on the capacity.
    """

    #: Its own defaults for flags of training.
    defaults: ClassVar[Mapping[str, float]] = {"beta": 4.0}


class TCVAE(VAE):
    r"""The beta-TC VAE: the total correlation has weight 6.

    It is a name for ``--elbo mean-field --total-correlation 6``. ``fit(TCVAE(...), data)`` equals ``fit(VAE(...), data,
    elbo=inference.TotalCorrelation(pv.elbo("mean-field"), 6.0, num_data=N))``. The model, its evidence and its samples are
    the VAE's.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, eq. 4.
    """

    objective: ClassVar[str | None] = "mean-field"
    #: Its own defaults for flags of training.
    defaults: ClassVar[Mapping[str, float]] = {"total_correlation": 6.0}
