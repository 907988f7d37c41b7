"""VAEs whose units shall each hold one factor of the data: the same model, trained under other weights of the KL's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyro_vae.models.vae import VAE


class BetaVAE(VAE):
    r"""The VAE of ``--model beta``: :math:`E_q[\log p(x|z)] - \beta\, KL(q(z|x) \| p(z))` with :math:`\beta = 4`.

    A name for ``--beta 4``; another ``--beta``, ``--anneal`` or ``--capacity`` goes with it as with any model, and
    ``fit(BetaVAE(...), data)`` is ``fit(VAE(...), data, beta=4.0)``. The model, its evidence and its samples are the VAE's.

    References:
        Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", 2017, eq. 4;
        Burgess et al., "Understanding disentangling in beta-VAE", 2018, on the capacity.
    """

    #: Settings of training that it wants where none are named.
    defaults: ClassVar[Mapping[str, Any]] = {"beta": 4.0}


class TCVAE(VAE):
    r"""The VAE of ``--model tcvae``: beta-TC, the total correlation weighted by 6.

    A name for ``--elbo mean-field --total-correlation 6``, and ``fit(TCVAE(...), data)`` is ``fit(VAE(...), data,
    elbo=inference.TotalCorrelation(pv.elbo("mean-field"), 6.0, num_data=N))``. The model, its evidence and its samples are
    the VAE's.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, eq. 4.
    """

    objective: ClassVar[str | None] = "mean-field"
    #: Settings of training that it wants where none are named.
    defaults: ClassVar[Mapping[str, Any]] = {"total_correlation": 6.0}
