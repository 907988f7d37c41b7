"""M1 + M2: a VAE with M2 as the prior of z."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Unpack

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.distributions import DiagonalNormal
from pyro_vae.distributions.likelihoods.registry import LIKELIHOODS
from pyro_vae.models.base import mean_image
from pyro_vae.models.semi_supervised.m2 import LabelOptions, SemiSupervised
from pyro_vae.models.vae import VAE
from pyro_vae.networks.base import Shapes
from pyro_vae.networks.build import JoinedNetworkLike, NetworkLike

#: The parts of a VAE that :meth:`M1M2.stand_on` takes over.
LOWER = ("encoder", "posterior", "decoder", "likelihood")


class M1M2(SemiSupervised):
    r"""The stacked model, M1 + M2.

    .. math:: p(y)\, p(z_2)\, p(z|z_2, y)\, p(x|z) \quad \text{with the guide} \quad q(z|x)\, q(y|z)\, q(z_2|z, y)

    The model is a VAE in which an M2 is the prior of z. The labels, the bound and the classifier's term are as in :class:`M2`.
    If the networks of a trained VAE are taken over and frozen (:meth:`stand_on`), training is layer-wise, as in Kingma et al.:
    it maximizes M2's objective on draws from q(z|x). Otherwise all networks train together.

    Args:
        data_shape: See :class:`VAE`.
        latent_dim: Size Z of each of the two latent vectors, z and z2.
        hidden: See :class:`VAE`; the classifier, the upper encoder and the upper decoder have one hidden layer each, with the
            last of these widths.
        activation: See :class:`VAE`.
        classifier: Module from latent vectors z, shape ``(..., Z)``, to logits, shape ``(..., C)``, or a callable that makes
            the module.
        upper_encoder: Module from z and a label to the parameters of q(z2|z, y), shape ``(..., 2 Z)``, or a callable that
            makes the module.
        upper_decoder: Module from z2 and a label to the parameters of p(z|z2, y), shape ``(..., 2 Z)``, or a callable that
            makes the module.
        below: A trained VAE or M1 whose networks are taken over and frozen, see :meth:`stand_on`; on the command line,
            ``--model-options below=RUN``.
        **options: See :class:`SemiSupervised`; ``posterior`` is the distribution q(z|x), ``prior`` is p(z2), and ``encoder``
            and ``decoder`` are as in :class:`VAE`.

    Raises:
        ValueError: If a size, ``classifier_weight`` or ``temperature`` is out of range, ``num_classes`` is missing, or a name
            is unknown.

    References:
        Kingma, Rezende, Mohamed, Welling, "Semi-Supervised Learning with Deep Generative Models", 2014, section 2.
    """

    #: Options that name a run on the command line; the constructor gets the run's model.
    from_runs: ClassVar[tuple[str, ...]] = ("below",)
    _stands = _centered = False

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        classifier: NetworkLike = None,
        upper_encoder: JoinedNetworkLike = None,
        upper_decoder: JoinedNetworkLike = None,
        below: VAE | None = None,
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.upper = DiagonalNormal(latent_dim)
        latent, label, params, upper = (latent_dim,), (self.num_classes,), (self.upper.num_params,), hidden[-1:]
        self.classifier = self.make_network(classifier, [latent], label, upper)
        self.upper_encoder = self.make_network(upper_encoder, (latent, label), params, upper)
        self.upper_decoder = self.make_network(upper_decoder, (latent, label), params, upper)
        if below is not None:
            self.stand_on(below)

    def _encoder_inputs(self) -> Shapes:
        return (self.data_shape,)

    def _decoder_inputs(self) -> Shapes:
        return ((self.latent_dim,),)

    def stand_on(self, vae: VAE, frozen: bool = True) -> None:
        """Take over the networks and likelihood of a trained VAE or M1.

        Args:
            vae: The trained VAE or M1. This model uses its networks themselves, not copies.
            frozen: True: these networks stay fixed. False: they train together with the other networks.

        Raises:
            ValueError: If ``vae`` is not a VAE, has other data or latent shapes, or has a likelihood with another name.
        """
        if isinstance(vae, str | os.PathLike):
            path = os.fspath(vae)
            raise ValueError(
                f"below: expected a trained vae or m1, got the path {path!r}, which only --model-options reads; pass "
                f"pyro_vae.load({path!r}).vae."
            )
        if not isinstance(vae, VAE):
            raise ValueError(
                f"below: expected a trained vae or m1, such as pyro_vae.load(RUN).vae, got {type(vae).__name__}; pass a VAE."
            )
        if (vae.data_shape, vae.latent_dim) != (self.data_shape, self.latent_dim):
            raise ValueError(
                f"below: expected a VAE with data shape {self.data_shape} and {self.latent_dim} latent units, got "
                f"{vae.data_shape} and {vae.latent_dim}; use --latent-dim {vae.latent_dim} on the same data, or another VAE."
            )
        ours, theirs = (next((n for n, k in LIKELIHOODS.items() if type(m.likelihood) is k), None) for m in (self, vae))
        if theirs not in (None, ours):
            raise ValueError(
                f"below: expected a VAE with the likelihood {ours or type(self.likelihood).__name__}, got {theirs}; pass "
                f"--likelihood {theirs}, or another VAE."
            )
        for name in LOWER:
            setattr(self, name, getattr(vae, name).requires_grad_(not frozen))
        self._stands, self._centered = frozen, True
        self.train(self.training)

    def center_output(self, mean: Tensor, scale: float | None = None) -> None:
        """Set the decoder's bias so that p(x|z) starts at the data's mean.

        After :meth:`stand_on` the call has no effect.

        Arguments: see :meth:`LatentModel.center_output`.
        """
        if not self._centered:
            super().center_output(mean, scale)

    def train(self, mode: bool = True) -> M1M2:
        """Set train or eval mode; frozen networks stay in eval mode."""
        super().train(mode)
        for name in LOWER if self._stands else ():
            getattr(self, name).eval()
        return self

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """The generative model p(y) p(z2) p(z|z2, y) p(x|z) with the classifier's term.

        Args:
            x: Data, shape ``(B, *data_shape)``.
            y: Labels, shape ``(B,)``, int64, -1 where unknown.

        Returns:
            The latent vectors z, shape ``(B, Z)``.
        """
        self._register("prior", "upper_decoder", "decoder", "likelihood", "classifier")
        with pyro.plate("data", len(x), dim=-1):
            label = self.labels.model(y)
            z2 = pyro.sample("z2", self.prior())
            z = pyro.sample("z", self.decode_upper(z2, label))
            pyro.sample("x", self.decode_lower(z), obs=x)
            self.labels.classified(y, self.classifier(z))
        return z

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """The guide q(z|x) q(y|z) q(z2|z, y); arguments: see :meth:`model`."""
        self._register("encoder", "posterior", "classifier", "upper_encoder")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.encode_lower(x))
            label = self.labels.guide(y, self.classifier(z))
            pyro.sample("z2", self.encode_upper(z, label))
        return z

    def encode_lower(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z|x), with event shape ``(Z,)``, for ``x`` of shape ``(..., *data_shape)``."""
        return self.posterior(self.encoder(self._checked(x)))

    def decode_lower(self, z: Tensor) -> TorchDistributionMixin:
        """Return p(x|z), with event shape ``data_shape``, for ``z`` of shape ``(..., Z)``."""
        return self.likelihood(self.decoder(z))

    def encode_upper(self, z: Tensor, y: Tensor) -> TorchDistributionMixin:
        """Return q(z2|z, y) for ``z`` of shape ``(..., Z)``; event shape ``(Z,)``."""
        return self.upper(self.upper_encoder(z, self.vector(y)))

    def decode_upper(self, z2: Tensor, y: Tensor) -> TorchDistributionMixin:
        """Return p(z|z2, y) for ``z2`` of shape ``(..., Z)``; event shape ``(Z,)``."""
        return self.upper(self.upper_decoder(z2, self.vector(y)))

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z2|z, y) at the mean z of q(z|x).

        By default, ``y`` is the most probable label.
        """
        label = self.vector(self.classify(x).argmax(-1) if y is None else y, x)
        return self.encode_upper(self.encode_lower(x).mean, label)

    def decode(self, z: Tensor, y: Tensor) -> TorchDistributionMixin:
        """Return p(x|z) at the mean z of p(z|z2, y).

        The argument named ``z`` is the upper latent vector z2.
        """
        return self.decode_lower(self.decode_upper(z, y).mean)

    @torch.no_grad()
    def classify(self, x: Tensor, num_samples: int = 16) -> Tensor:
        """Return class probabilities: average q(y|z) over draws of z ~ q(z|x).

        Args:
            x: Data, shape ``(..., *data_shape)``.
            num_samples: The number of draws.

        Returns:
            The class probabilities, shape ``(..., C)``, with C classes.
        """
        return self.classifier(self.encode_lower(x).sample((num_samples,))).softmax(-1).mean(0)

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        y: Tensor | None = None,  # noqa: ARG002  # part of the protocol
    ) -> Tensor:
        """Return the mean of p(x|z) at one draw of z.

        The draw is from q(z|x); ``y`` is ignored.
        """
        return mean_image(self.decode_lower(self.encode_lower(x).sample()))

    @torch.no_grad()
    def sample(self, num_samples: int, y: Tensor | int | None = None) -> Tensor:
        """Draw data: z2 ~ p(z2), z ~ p(z|z2, y), x ~ p(x|z).

        Arguments: see :meth:`LabelledModel.sample`.
        """
        label = self._labels(num_samples, y)
        return self.decode_lower(self.decode_upper(self.prior().sample((num_samples,)), label).sample()).sample()
