"""M2, and the base class of semi-supervised models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.models.base import ModelOptions, mean_image
from pyro_vae.models.conditional import LabelledModel
from pyro_vae.models.semi_supervised.labels import Labels
from pyro_vae.networks.build import NetworkLike


class LabelOptions(ModelOptions, total=False):
    """Keyword arguments of :class:`SemiSupervised`."""

    num_classes: int | None
    classifier_weight: float
    temperature: float | None


class SemiSupervised(LabelledModel):
    """Base class of models for data with partly known labels.

    Args:
        data_shape: See :class:`LabelledModel`.
        latent_dim: See :class:`LabelledModel`.
        hidden: See :class:`LabelledModel`.
        activation: See :class:`LabelledModel`.
        num_classes: Number C of classes.
        classifier_weight: Weight alpha of the classifier's term, at least 0; see :meth:`Labels.classified`.
        temperature: None to sum over unknown labels by enumeration; a number to relax unknown labels in training; see
            :class:`Labels`.
        **options: See :class:`LabelledModel`.
    """

    objective: ClassVar[str | None] = "enum"

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        num_classes: int | None = None,
        classifier_weight: float = 1.0,
        temperature: float | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, num_classes=num_classes, **options)
        self.labels = Labels(self.num_classes, classifier_weight, temperature)
        if temperature is not None:
            self.objective = "trace"  # type: ignore[misc]

    def classify(self, x: Tensor) -> Tensor:
        """Return the class probabilities q(y|x), shape ``(..., C)`` with C classes."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z, y) at one draw of z.

        The draw is from q(z|x, y). By default, ``y`` is the most probable label.
        """
        label = self.classify(x).argmax(-1) if y is None else y
        return mean_image(self.decode(self.encode(x, label).sample(), label))


class M2(SemiSupervised):
    r"""The generative semi-supervised model.

    .. math:: p(y)\, p(z)\, p(x|z, y) \quad \text{with the guide} \quad q(y|x)\, q(z|x, y)

    For a labelled datum the bound L is on log p(x, y). For an unlabelled datum (-1) the bound U is on log p(x):

    .. math:: \mathcal L(x, y) = E_{q(z|x, y)}\big[\log p(x, y, z) - \log q(z|x, y)\big], \quad
        \mathcal U(x) = \textstyle\sum_y q(y|x) \big(\mathcal L(x, y) - \log q(y|x)\big)

    Training maximizes :math:`\sum \mathcal L + \sum \mathcal U + \alpha \log q(y|x)`. The last term, the classifier's term,
    covers the labelled data; it has a site of its own and is not part of the bound (:meth:`Labels.classified`). The plate is
    ``"data"``; the sites are ``"z"``, ``"x"``, ``"y_unobserved"``, ``"y_observed"`` and ``"y_classified"``. ``elbo("enum")``
    and ``pv.evidence.importance_sampling`` sum over y exactly.

    Args:
        data_shape: See :class:`LabelledModel`.
        latent_dim: See :class:`LabelledModel`.
        hidden: See :class:`LabelledModel`; the classifier has the same hidden layers as the encoder.
        activation: See :class:`LabelledModel`.
        classifier: Module from data, shape ``(..., *data_shape)``, to logits, shape ``(..., C)``, or a callable that makes the
            module.
        **options: See :class:`SemiSupervised`.

    Raises:
        ValueError: If a size, ``classifier_weight`` or ``temperature`` is out of range, ``num_classes`` is missing, or a name
            is unknown.

    References:
        Kingma, Rezende, Mohamed, Welling, "Semi-Supervised Learning with Deep Generative Models", 2014, eq. 6 to 9; Maddison,
        Mnih, Teh, "The Concrete Distribution", 2017, for the relaxed labels.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        classifier: NetworkLike = None,
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.classifier = self.make_network(classifier, [self.data_shape], (self.num_classes,), hidden)

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """The generative model p(y) p(z) p(x|z, y) with the classifier's term.

        Args:
            x: Data, shape ``(B, *data_shape)``.
            y: Labels, shape ``(B,)``, int64, -1 where unknown.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("prior", "decoder", "likelihood", "classifier")
        with pyro.plate("data", len(x), dim=-1):
            label = self.labels.model(y)
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, label), obs=x)
            self.labels.classified(y, self.classifier(x))
        return z

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """The guide q(y|x) q(z|x, y); arguments: see :meth:`model`."""
        self._register("classifier", "encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            label = self.labels.guide(y, self.classifier(x))
            return pyro.sample("z", self.encode(x, label))

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Return the class probabilities q(y|x), shape ``(..., C)`` with C classes."""
        return self.classifier(self._checked(x)).softmax(-1)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x, y); by default, ``y`` is the most probable label.

        Arguments: see :meth:`LabelledModel.encode`.
        """
        return super().encode(x, self.classify(x).argmax(-1) if y is None else y)
