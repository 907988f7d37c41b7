"""Models of images and labels, most of which are unknown: what they have in common, and M2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.models.base import mean_image
from pyro_vae.models.conditional import LabelledModel
from pyro_vae.models.semi_supervised.labels import Labels
from pyro_vae.networks.build import Network, make_network


class SemiSupervised(LabelledModel):
    """What models with labels that are known for some data have in common: the labels, and how they are trained.

    Args:
        *args: See :class:`LabelledModel`.
        classifier_weight: alpha, at least 0; see :meth:`Labels.classified`.
        temperature: None: labels are enumerated. A number: relaxed ones in training, see :class:`Labels`.
        **options: See :class:`LabelledModel`.
    """

    objective: ClassVar[str | None] = "enum"

    def __init__(
        self, *args: Any, classifier_weight: float = 1.0, temperature: float | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.labels = Labels(self.num_classes, classifier_weight, temperature)
        if temperature is not None:
            self.objective = "trace"  # type: ignore[misc]

    def classify(self, x: Tensor) -> Tensor:
        """The class probabilities q(y|x), shape ``(..., C)``, of data of shape ``(..., *data_shape)``."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The mean image at one draw of the guide, at the most probable label where none is given; shape of ``x``."""
        label = self.classify(x).argmax(-1) if y is None else y
        return mean_image(self.decode(self.encode(x, label).sample(), label))


class M2(SemiSupervised):
    r"""The generative semi-supervised model: :math:`p(y)\, p(z)\, p(x|z, y)`, the guide :math:`q(y|x)\, q(z|x, y)`.

    Of a datum with a label the bound is one on log p(x, y), of one without (-1) on log p(x), with a sum over y:

    .. math:: \mathcal L(x, y) = E_{q(z|x, y)}\big[\log p(x, y, z) - \log q(z|x, y)\big], \quad
        \mathcal U(x) = \textstyle\sum_y q(y|x) \big(\mathcal L(x, y) - \log q(y|x)\big)

    Trained by :math:`\sum \mathcal L + \sum \mathcal U + \alpha \log q(y|x)`, the last of labelled data, at a site of its own
    that enters no bound (:meth:`Labels.classified`). Plate ``"data"``, sites ``"z"``, ``"x"``, ``"y_unobserved"``,
    ``"y_observed"`` and ``"y_classified"``. ``elbo("enum")`` and ``pv.evidence.importance_sampling`` sum over y exactly.

    Args:
        data_shape: See :class:`LabelledModel`.
        latent_dim: Likewise.
        hidden: Likewise; the classifier has the same layers.
        activation: Likewise.
        classifier: Module from ``(..., *data_shape)`` to logits, shape ``(..., C)``, in place of the perceptron, or what
            makes one, see ``models.base.Network``.
        **options: ``classifier_weight`` and ``temperature``, see :class:`SemiSupervised`, and those of :class:`LabelledModel`.

    Raises:
        ValueError: If a number is out of its range, ``num_classes`` is missing, or a name is unknown.

    References:
        Kingma, Rezende, Mohamed, Welling, "Semi-Supervised Learning with Deep Generative Models", 2014, eq. 6 to 9; Maddison,
        Mnih, Teh, "The Concrete Distribution", 2017, of the relaxed labels.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        classifier: Network = None,
        **options: Any,
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.classifier = make_network(classifier, self.data_shape, (self.num_classes,), hidden, activation)

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """The generative model p(y) p(z) p(x|z, y), and the classifier's term.

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
        """The guide q(y|x) q(z|x, y); see :meth:`model`."""
        self._register("classifier", "encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            label = self.labels.guide(y, self.classifier(x))
            return pyro.sample("z", self.encode(x, label))

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """The class probabilities q(y|x), shape ``(..., C)``, of data of shape ``(..., *data_shape)``."""
        return self.classifier(self._checked(x)).softmax(-1)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistributionMixin:
        """q(z|x, y), at the most probable label where none is given; see :meth:`LabelledModel.encode`."""
        return super().encode(x, self.classify(x).argmax(-1) if y is None else y)
