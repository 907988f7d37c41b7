"""M1 + M2: the semi-supervised model on top of a VAE's latent vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor

from pyro_vae.distributions import DiagonalNormal
from pyro_vae.models.base import Network, network
from pyro_vae.models.conditional import JoinedNetwork, joined
from pyro_vae.models.labels import Labels, check_classes
from pyro_vae.models.vae import VAE

#: What a VAE has that :meth:`M1M2.stand_on` takes.
LOWER = ("encoder", "posterior", "decoder", "likelihood")


class M1M2(VAE):
    r"""The stacked model: :math:`p(y)\, p(z_2)\, p(z|z_2, y)\, p(x|z)`, the guide :math:`q(z|x)\, q(y|z)\, q(z_2|z, y)`.

    A VAE whose prior of z is an M2. Labels, bound and the classifier's term are as in :class:`M2`. With the networks of a
    trained VAE (:meth:`stand_on`), which then stay as they are, this is the layer-wise training of Kingma et al.: M2's
    objective on draws from q(z|x). From nothing, all networks train together.

    Args:
        data_shape: See :class:`VAE`.
        latent_dim: Size of z, and of z2.
        hidden: See :class:`VAE`; the networks of the upper layer have its last hidden layer.
        activation: See :class:`VAE`.
        num_classes: C.
        classifier: Module from ``(..., Z)`` to logits, shape ``(..., C)``, in place of the perceptron, or what makes one.
        upper_encoder: Module of z and a label, to the parameters of q(z2|z, y), shape ``(..., 2 Z)``, or what makes one.
        upper_decoder: Module of z2 and a label, to the parameters of p(z|z2, y), likewise.
        classifier_weight: alpha, at least 0; see :meth:`Labels.classified`.
        temperature: None: labels are enumerated. A number: relaxed ones in training, see :class:`Labels`.
        **options: See :class:`VAE`; ``prior`` is that of z2.

    Raises:
        ValueError: If a number is out of its range, ``num_classes`` is missing, or a name is unknown.

    References:
        Kingma, Rezende, Mohamed, Welling, "Semi-Supervised Learning with Deep Generative Models", 2014, section 2.
    """

    takes: ClassVar[tuple[str, ...]] = ("x", "y")
    objective: ClassVar[str | None] = "enum"
    _stands = False

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        num_classes: int | None = None,
        classifier: Network = None,
        upper_encoder: JoinedNetwork = None,
        upper_decoder: JoinedNetwork = None,
        classifier_weight: float = 1.0,
        temperature: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.num_classes = check_classes(num_classes, type(self).__name__)
        self.labels = Labels(self.num_classes, classifier_weight, temperature)
        self.upper = DiagonalNormal(latent_dim)
        latent, label, params, upper = (latent_dim,), (self.num_classes,), (self.upper.num_params,), hidden[-1:]
        self.classifier = network(classifier, latent, label, upper, activation)
        self.upper_encoder = joined(upper_encoder, (latent, label), params, upper, activation)
        self.upper_decoder = joined(upper_decoder, (latent, label), params, upper, activation)
        if temperature is not None:
            self.objective = "trace"  # type: ignore[misc]

    def stand_on(self, vae: VAE) -> None:
        """Take the encoder, decoder and likelihood of a trained VAE (or M1), and leave them as they are from then on.

        Raises:
            ValueError: If its data or latent vectors have another shape.
        """
        if (vae.data_shape, vae.latent_dim) != (self.data_shape, self.latent_dim):
            raise ValueError(
                f"vae: expected data of shape {self.data_shape} and {self.latent_dim} latent units, got {vae.data_shape} and "
                f"{vae.latent_dim}; make both alike."
            )
        for name in LOWER:
            setattr(self, name, getattr(vae, name).requires_grad_(False))
        self._stands = True
        self.train(self.training)

    def train(self, mode: bool = True) -> M1M2:
        """Set train mode, or eval mode; the networks of :meth:`stand_on` stay in eval mode."""
        super().train(mode)
        for name in LOWER if self._stands else ():
            getattr(self, name).eval()
        return self

    def model(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """The generative model p(y) p(z2) p(z|z2, y) p(x|z), and the classifier's term.

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
            z = pyro.sample("z", self.upper(self.upper_decoder(z2, label)))
            pyro.sample("x", self.decode(z), obs=x)
            self.labels.classified(y, self.classifier(z))
        return z

    def guide(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """The guide q(z|x) q(y|z) q(z2|z, y); see :meth:`model`."""
        self._register("encoder", "posterior", "classifier", "upper_encoder")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.encode(x))
            label = self.labels.guide(y, self.classifier(z))
            pyro.sample("z2", self.upper(self.upper_encoder(z, label)))
        return z

    @torch.no_grad()
    def classify(self, x: Tensor, num_samples: int = 16) -> Tensor:
        """The class probabilities q(y|x), the mean of q(y|z) over draws z ~ q(z|x).

        Args:
            x: Data, shape ``(..., *data_shape)``.
            num_samples: How many draws.

        Returns:
            Shape ``(..., C)``.
        """
        return self.classifier(self.encode(x).sample((num_samples,))).softmax(-1).mean(0)

    @torch.no_grad()
    def sample(self, num_samples: int, y: Tensor | int | None = None) -> Tensor:
        """Draws x ~ p(x|z), z ~ p(z|z2, y), z2 ~ p(z2).

        Args:
            num_samples: How many.
            y: A label for all, or one for each, shape ``(num_samples,)``; None: each class in turn.

        Returns:
            Shape ``(num_samples, *data_shape)``.

        Raises:
            ValueError: If ``num_samples`` is below 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}.")
        turns = torch.arange(num_samples, device=self.labels.one_hot.device)
        label = turns % self.num_classes if y is None else torch.full_like(turns, y) if isinstance(y, int) else y
        z2 = self.prior().sample((num_samples,))
        z = self.upper(self.upper_decoder(z2, self.labels.one_hot[label])).sample()
        return self.decode(z).sample()
