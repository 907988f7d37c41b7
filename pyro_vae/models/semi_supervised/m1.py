"""M1: a VAE with a classifier of its latent vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import pyro
import torch
from torch import Tensor

from pyro_vae.models.base import ModelOptions
from pyro_vae.models.checks import check_classes
from pyro_vae.models.semi_supervised.labels import Labels
from pyro_vae.models.vae import VAE
from pyro_vae.networks.build import NetworkLike


class M1(VAE):
    r"""The latent-feature model: the VAE :math:`p(z)\, p(x|z)`, :math:`q(z|x)`, and a classifier :math:`q(y|z)`.

    The labels train only the classifier: it takes draws of z, and its gradient does not reach the encoder. The classifier's
    term is the site ``"y_classified"``, which is not part of the bound. The bound is the VAE's, on log p(x).

    Args:
        data_shape: See :class:`VAE`.
        latent_dim: See :class:`VAE`.
        hidden: See :class:`VAE`; the classifier's hidden layer has the last of these widths.
        activation: See :class:`VAE`.
        num_classes: Number C of classes.
        classifier: Module from latent vectors, shape ``(..., Z)``, to logits, shape ``(..., C)``, or a callable that makes the
            module.
        classifier_weight: Weight alpha of the classifier's term, at least 0; see :meth:`Labels.classified`.
        **options: See :class:`VAE`.

    Raises:
        ValueError: If a size or ``classifier_weight`` is out of range, ``num_classes`` is missing, or a name is unknown.

    References:
        Kingma, Rezende, Mohamed, Welling, "Semi-Supervised Learning with Deep Generative Models", 2014, section 2.1
        (there the classifier is a support vector machine; here it is a perceptron).
    """

    takes: ClassVar[tuple[str, ...]] = ("x", "y")

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        num_classes: int | None = None,
        classifier: NetworkLike = None,
        classifier_weight: float = 1.0,
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.num_classes = check_classes(num_classes, type(self).__name__)
        self.classifier = self.make_network(classifier, [(latent_dim,)], (self.num_classes,), hidden[-1:])
        self.labels = Labels(self.num_classes, classifier_weight)

    def model(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """The generative model p(z) p(x|z) with the classifier's term.

        Args:
            x: Data, shape ``(B, *data_shape)``.
            y: Labels, shape ``(B,)``, int64, -1 where unknown.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("prior", "decoder", "likelihood", "classifier")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)
            self.labels.classified(y, self.classifier(z.detach()))
        return z

    def guide(  # type: ignore[override]
        self,
        x: Tensor,
        y: Tensor,  # noqa: ARG002  # part of the protocol
    ) -> Tensor:
        """The guide q(z|x); arguments: see :meth:`model`."""
        return super().guide(x)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Return class probabilities at the mean of q(z|x), shape ``(..., C)``."""
        return self.classifier(self.encode(x).mean).softmax(-1)
