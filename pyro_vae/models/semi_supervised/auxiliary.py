"""Auxiliary deep generative models: an auxiliary latent vector enriches the guide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.distributions import DiagonalNormal
from pyro_vae.models.semi_supervised.m2 import LabelOptions, SemiSupervised
from pyro_vae.networks.base import Shapes
from pyro_vae.networks.build import JoinedNetworkLike, NetworkLike


class AuxiliaryModel(SemiSupervised):
    r"""Base class of :class:`ADGM` and :class:`SDGM`, which share this guide.

    .. math:: q(a|x)\, q(y|a, x)\, q(z|a, x, y)

    The auxiliary latent vector a is an additional site ``"a"``. The labels, the bound and the classifier's term are as in
    :class:`M2`; the bound averages over a and sums over y.

    Args:
        data_shape: See :class:`LabelledModel`.
        latent_dim: Size Z of the latent vector z, and also of the auxiliary vector a.
        hidden: See :class:`LabelledModel`; all networks have these hidden layers.
        activation: See :class:`LabelledModel`.
        auxiliary_encoder: Module from an image to the parameters of q(a|x), shape ``(..., 2 Z)``, or a callable that makes
            the module.
        auxiliary_decoder: Module from an image, a label and z to the parameters of p(a|x, y, z), shape ``(..., 2 Z)``; in SDGM,
            from a label and z to the parameters of p(a|z, y).
        classifier: Module from an image and a to logits, shape ``(..., C)``.
        **options: See :class:`SemiSupervised`; the encoder's inputs are an image, a label and a.

    Raises:
        ValueError: If a size, ``classifier_weight`` or ``temperature`` is out of range, ``num_classes`` is missing, or a name
            is unknown.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        auxiliary_encoder: NetworkLike = None,
        auxiliary_decoder: JoinedNetworkLike = None,
        classifier: JoinedNetworkLike = None,
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.auxiliary = DiagonalNormal(latent_dim)
        params, latent, label = (self.auxiliary.num_params,), (latent_dim,), (self.num_classes,)
        self.auxiliary_encoder = self.make_network(auxiliary_encoder, [self.data_shape], params, hidden)
        self.auxiliary_decoder = self.make_network(auxiliary_decoder, self._auxiliary_decoder_inputs(), params, hidden)
        self.classifier = self.make_network(classifier, (self.data_shape, latent), label, hidden)

    def _encoder_inputs(self) -> Shapes:
        return self.data_shape, (self.num_classes,), (self.latent_dim,)

    def _auxiliary_decoder_inputs(self) -> Shapes:
        raise NotImplementedError

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """The guide q(a|x) q(y|a, x) q(z|a, x, y).

        Args:
            x: Data, shape ``(B, *data_shape)``.
            y: Labels, shape ``(B,)``, int64, -1 where unknown.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("auxiliary_encoder", "classifier", "encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", self.encode_auxiliary(x))
            label = self.labels.guide(y, self.classifier(x, a))
            return pyro.sample("z", self.encode(x, label, a))

    def encode_auxiliary(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(a|x), a distribution with event shape ``(Z,)``."""
        return self.auxiliary(self.auxiliary_encoder(self._checked(x)))

    def encode(self, x: Tensor, y: Tensor | None = None, a: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|a, x, y), a distribution with event shape ``(Z,)``.

        By default, ``a`` is the mean of q(a|x), and ``y`` is the most probable label.
        """
        label = self.classify(x).argmax(-1) if y is None else y
        a = self.encode_auxiliary(x).mean if a is None else a
        return self.posterior(self.encoder(self._checked(x), self.vector(label, x), a))

    @torch.no_grad()
    def classify(self, x: Tensor, num_samples: int = 16) -> Tensor:
        """Return class probabilities: average q(y|a, x) over draws of a.

        Args:
            x: Data, shape ``(..., *data_shape)``.
            num_samples: The number of draws.

        Returns:
            The class probabilities, shape ``(..., C)``, with C classes.
        """
        draws = self.encode_auxiliary(x).sample((num_samples,))
        return self.classifier(x, draws).softmax(-1).mean(0)


class ADGM(AuxiliaryModel):
    r"""The auxiliary model :math:`p(y)\, p(z)\, p(x|z, y)\, p(a|x, y, z)`.

    Guide and arguments: see :class:`AuxiliaryModel`.

    The model's p(x, y) is that of :class:`M2`, since nothing else depends on a. The guide's q(y, z|x) becomes a mixture over a.

    References:
        Maaløe, Sønderby, Sønderby, Winther, "Auxiliary Deep Generative Models", 2016, section 2.2 and 2.3.
    """

    def _auxiliary_decoder_inputs(self) -> Shapes:
        return self.data_shape, (self.num_classes,), (self.latent_dim,)

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """The generative model with the classifier's term; arguments: see :meth:`guide`."""
        self._register("prior", "decoder", "likelihood", "auxiliary_decoder", "classifier")
        with pyro.plate("data", len(x), dim=-1):
            label = self.labels.model(y)
            z = pyro.sample("z", self.prior())
            x = pyro.sample("x", self.decode(z, label), obs=x)
            a = pyro.sample("a", self.auxiliary(self.auxiliary_decoder(x, label, z)))
            self.labels.classified(y, self.classifier(x, a))
        return z


class SDGM(AuxiliaryModel):
    r"""The skip model :math:`p(y)\, p(z)\, p(a|z, y)\, p(x|a, z, y)`.

    Guide and arguments: see :class:`AuxiliaryModel`.

    The model has two layers of latent vectors: z is above a. A skip connection leads from z to the image.

    References:
        Maaløe, Sønderby, Sønderby, Winther, "Auxiliary Deep Generative Models", 2016, section 2.4.
    """

    def _auxiliary_decoder_inputs(self) -> Shapes:
        return (self.num_classes,), (self.latent_dim,)

    def _decoder_inputs(self) -> Shapes:
        return (self.latent_dim,), (self.num_classes,), (self.latent_dim,)

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """The generative model with the classifier's term; arguments: see :meth:`guide`."""
        self._register("prior", "auxiliary_decoder", "decoder", "likelihood", "classifier")
        with pyro.plate("data", len(x), dim=-1):
            label = self.labels.model(y)
            z = pyro.sample("z", self.prior())
            a = pyro.sample("a", self.decode_auxiliary(z, label))
            x = pyro.sample("x", self.decode(z, label, a), obs=x)
            self.labels.classified(y, self.classifier(x, a))
        return z

    def decode_auxiliary(self, z: Tensor, y: Tensor) -> TorchDistributionMixin:
        """Return p(a|z, y) for ``z`` of shape ``(..., Z)``; event shape ``(Z,)``."""
        return self.auxiliary(self.auxiliary_decoder(self.vector(y), z))

    def decode(self, z: Tensor, y: Tensor, a: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|a, z, y); ``a`` defaults to one draw from p(a|z, y)."""
        a = self.decode_auxiliary(z, y).sample() if a is None else a
        return self.likelihood(self.decoder(z, self.vector(y), a))
