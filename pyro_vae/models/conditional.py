"""The conditional VAE, and the base class of models with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.data.labels import WHOLE_NUMBERS
from pyro_vae.errors import check_count
from pyro_vae.models.base import LatentModel, ModelOptions, mean_image
from pyro_vae.models.checks import check_classes
from pyro_vae.networks.base import Shapes


class LabelledModel(LatentModel):
    r"""Base class of models that take a label or a vector y.

    .. math:: p(z)\, p(x|z, y) \quad \text{with the guide} \quad q(z|x, y)

    Args:
        data_shape: See :class:`VAE`.
        latent_dim: See :class:`VAE`.
        hidden: See :class:`VAE`.
        activation: See :class:`VAE`.
        num_classes: Number C of classes, or the size C of the vector y.
        **options: See :class:`VAE`. The encoder maps an image and a label, shapes ``(..., *data_shape)`` and
            ``(..., C)``, to ``(..., num_params)``. The decoder maps a latent vector and a label, shapes ``(..., Z)`` and
            ``(..., C)``, to ``(..., *data_shape)``.

    Raises:
        ValueError: If a size is below 1, ``num_classes`` is missing or is too small, or a name is unknown.
    """

    takes: ClassVar[tuple[str, ...]] = ("x", "y")
    least_classes: ClassVar[int] = 2
    one_hot: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        num_classes: int | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        # Set before the base class makes the networks, whose sizes depend on num_classes.
        self.num_classes = check_classes(num_classes, type(self).__name__, self.least_classes)
        super().__init__(data_shape, latent_dim, hidden, activation, **options)
        self.register_buffer("one_hot", torch.eye(self.num_classes), persistent=False)

    def _encoder_inputs(self) -> Shapes:
        return self.data_shape, (self.num_classes,)

    def _decoder_inputs(self) -> Shapes:
        return (self.latent_dim,), (self.num_classes,)

    def encode(self, x: Tensor, y: Tensor) -> TorchDistributionMixin:
        """Return q(z|x, y), a distribution with event shape ``(Z,)``.

        Args:
            x: Data, shape ``(..., *data_shape)``.
            y: Labels, int64, shape ``(...,)``, or vectors, shape ``(..., C)``.
        """
        return self.posterior(self.encoder(self._checked(x), self.vector(y, x)))

    def decode(self, z: Tensor, y: Tensor) -> TorchDistributionMixin:
        """Return p(x|z, y) for ``z`` of shape ``(..., Z)``; event shape ``data_shape``."""
        return self.likelihood(self.decoder(z, self.vector(y)))

    def vector(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """Convert labels to one-hot vectors; return vectors unchanged.

        Args:
            y: Labels, int64, shape ``(...,)``, or vectors, shape ``(..., C)``.
            x: The labelled data, shape ``(..., *data_shape)``, if known. If ``x`` is given, a ``y`` with a single float for
                each datum is refused.

        Raises:
            ValueError: If ``y`` has another dtype or size, or a label is unknown or out of range while Pyro's validation is on.
        """
        single = x is not None and y.dim() > 0 and y.shape == x.shape[: x.dim() - len(self.data_shape)]
        sized = y.shape[-1:] == (self.num_classes,) and not single
        if not (sized if y.is_floating_point() else y.dtype in WHOLE_NUMBERS):
            raise ValueError(
                f"y: expected for each datum a label (int64) or a vector of {self.num_classes} floats, got "
                f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}; convert labels by y.long()."
            )
        if y.is_floating_point():
            return y
        if is_validation_enabled() and x is not None and self.num_classes == 1:
            raise ValueError(
                "y: expected vectors of one float, shape (B, 1), got labels of a single class; use a model without labels."
            )
        if is_validation_enabled() and bool((y < 0).any()):
            raise ValueError(
                "y: expected a label for each datum, got -1 (unknown); remove data without a label, or use a model such as m2."
            )
        if is_validation_enabled() and bool((y >= self.num_classes).any()):
            raise ValueError(
                f"y: expected labels from 0 to {self.num_classes - 1}, got {int(y.max())}; number the classes from 0."
            )
        return self.one_hot[y]

    @torch.no_grad()
    def sample(self, num_samples: int, y: Tensor | int | None = None) -> Tensor:
        """Draw x ~ p(x|z, y) with z ~ p(z).

        Args:
            num_samples: The number of draws.
            y: One label for all draws; a label for each draw, shape ``(num_samples,)``; or a vector for each draw, shape
                ``(num_samples, C)``. None to take the C classes in turn; a model of vectors takes the C unit
                vectors in turn.

        Returns:
            The draws of x, shape ``(num_samples, *data_shape)``.

        Raises:
            ValueError: If ``num_samples`` is below 1, or ``y`` has another shape.
        """
        label = self._labels(num_samples, y)
        return self.decode(self.prior().sample((num_samples,)), label).sample()

    def _labels(self, num_samples: int, y: Tensor | int | None) -> Tensor:
        check_count("num_samples", num_samples)
        turns = torch.arange(num_samples, device=self.one_hot.device)
        if not isinstance(y, Tensor):
            return turns % self.num_classes if y is None else torch.full_like(turns, y)
        if y.shape != (num_samples, self.num_classes)[: 1 + y.is_floating_point()]:
            raise ValueError(
                f"y: expected one label, {num_samples} labels, or floats of shape ({num_samples}, {self.num_classes}), got "
                f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}; give a label or a vector for each sample."
            )
        return y

    @torch.no_grad()
    def analogies(self, x: Tensor, y: Tensor) -> Tensor:
        """Reconstruct each datum with every label in turn.

        The latent vector is the mean of q(z|x, y), with the datum's own label y.

        Args:
            x: Data, shape ``(B, *data_shape)``.
            y: Labels of the data, shape ``(B,)``.

        Returns:
            Mean images, shape ``(B, C, *data_shape)``.
        """
        z = self.encode(x, y).mean
        return mean_image(self.decode(z[:, None], self.one_hot))


class Conditional(LabelledModel):
    r"""The conditional VAE: :math:`p(z)\, p(x|z, y)` with the guide :math:`q(z|x, y)`.

    The label or vector y is given, not modelled, so the evidence is log p(x|y). The plate is ``"data"``; the sites are ``"z"``
    and ``"x"``. Arguments: see :class:`LabelledModel`.

    References:
        Sohn, Lee, Yan, "Learning Structured Output Representation using Deep Conditional Generative Models", 2015, with a
        prior that does not depend on y; Kingma et al., "Semi-Supervised Learning with Deep Generative Models", 2014.
    """

    least_classes: ClassVar[int] = 1  # a vector may have a single entry

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """The generative model p(z) p(x|z, y).

        Args:
            x: Data, shape ``(B, *data_shape)``.
            y: Labels, shape ``(B,)``, int64, or vectors, shape ``(B, C)``.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        self._register("prior", "decoder", "likelihood")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, y), obs=x)
        return z

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """The guide q(z|x, y); its arguments are those of :meth:`model`."""
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encode(x, y))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of p(x|z, y) at one z ~ q(z|x, y)."""
        return mean_image(self.decode(self.encode(x, y).sample(), y))
