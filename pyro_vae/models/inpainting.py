"""Models of partly visible images, and a VAE trained for inpainting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Unpack

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.lookup import lookup
from pyro_vae.models.base import PartOptions, mean_image
from pyro_vae.models.protocol import Autoencodes, method_of, num_required_arguments, takes
from pyro_vae.models.vae import VAE
from pyro_vae.networks.build import NetworkLike
from pyro_vae.registration import register


def seen(p: TorchDistributionMixin, visible: Tensor) -> TorchDistributionMixin:
    r"""Restrict a likelihood to the visible pixels V.

    .. math:: \log p(x_V|z) = \textstyle\sum_{d \in V} \log p(x_d|z)

    The mask applies to each pixel, before the sum over pixels. Pyro's own mask cannot hide single pixels, since it has the
    batch shape of the site.

    Args:
        p: The likelihood p(x|z) with independent pixels, batch shape ``(..., B)``, event shape ``data_shape``.
        visible: Bool mask, True where a pixel is visible; the shape broadcasts to ``(B, *data_shape)``.

    Returns:
        The distribution of the visible pixels. It has the shapes of ``p``; its log probability omits the hidden pixels.

    Raises:
        ValueError: If the pixels are not independent given z.
    """
    base, event_dim = p, len(p.event_shape)
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if base.event_shape:
        raise ValueError(
            f"likelihood: expected independent pixels given z, got {type(base).__name__} with event shape "
            f"{tuple(base.event_shape)}; use a likelihood from distributions.LIKELIHOODS."
        )
    return base.mask(visible).to_event(event_dim)


def check_visible(visible: Tensor, x: Tensor, data_shape: Sequence[int]) -> Tensor:
    """Check a mask and convert it to a bool tensor.

    Args:
        visible: Mask, True or 1 where a pixel is visible: a tensor, an array or a list, shape ``data_shape`` or
            ``(B, *data_shape)``.
        x: The data, shape ``(B, *data_shape)``.
        data_shape: Shape of one datum.

    Returns:
        The mask, bool, with the shape of ``x``.

    Raises:
        ValueError: If ``visible`` has another shape, or values other than 0 and 1.
    """
    try:
        visible = torch.as_tensor(visible)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"visible: expected a mask of shape {tuple(data_shape)}, got {type(visible).__name__}; give a tensor that is True "
            "where a pixel is visible."
        ) from None
    if tuple(visible.shape) not in (tuple(data_shape), tuple(x.shape)):
        raise ValueError(
            f"visible: expected a mask of shape {tuple(data_shape)} for all data, or {tuple(x.shape)} for each datum, got "
            f"{tuple(visible.shape)}; give a mask of one of these shapes."
        )
    if visible.dtype != torch.bool and not bool(((visible == 0) | (visible == 1)).all()):
        raise ValueError(
            "visible: expected True and False, or 1 and 0, got other values; give True where a pixel is visible."
        )
    return visible.to(device=x.device, dtype=torch.bool).expand(x.shape)


class Partial:
    r"""A trained model and its guide, restricted to the visible pixels V.

    .. math:: p(z) \textstyle\prod_{d \in V} p(x_d|z)

    ``model`` and ``guide`` take ``(x, visible)``. For this model the estimators of ``evidence`` estimate
    :math:`\log p(x_V)` in place of log p(x). For an :class:`InpaintingVAE`, the guide calls
    ``encode(x, visible)``. For other models, the guide replaces the hidden pixels by the mean of samples from the model and
    calls ``encode(x)``; ``evidence.refine`` improves this guide.

    Args:
        vae: A model with ``prior``, ``encode`` and ``decode``, and with independent pixels given z.
        num_samples: Number of samples from the model whose mean replaces the hidden pixels.

    Raises:
        ValueError: If the model lacks ``prior``, ``encode`` or ``decode``, or one of these methods needs a label.
    """

    def __init__(self, vae: Autoencodes, num_samples: int = 256) -> None:
        for part, form, count in (("prior", "prior()", 0), ("encode", "encode(x)", 1), ("decode", "decode(z)", 1)):
            method = method_of(vae, part)
            if method is None or num_required_arguments(method) != count or takes(vae) != ("x",):
                raise ValueError(
                    f"vae: inpainting needs a model of x alone with prior(), encode(x) and decode(z), but {type(vae).__name__} "
                    f"{'takes ' + ' and '.join(takes(vae)) if len(takes(vae)) > 1 else 'has no ' + form}; use a VAE."
                )
        self.vae = vae
        self.background: Tensor | None = None
        if not isinstance(vae, InpaintingVAE):
            with torch.no_grad():
                self.background = mean_image(vae.decode(vae.prior().sample((num_samples,)))).mean(0)

    def model(self, x: Tensor, visible: Tensor) -> Tensor:
        """The generative model p(z) p(x_V|z) of the visible pixels.

        Args:
            x: Data, shape ``(B, *data_shape)``; hidden pixels may have any value, even NaN.
            visible: True where a pixel is visible, shape ``data_shape`` or ``(B, *data_shape)``.

        Returns:
            The latent vectors, shape ``(B, Z)``.
        """
        visible = check_visible(visible, x, self.vae.data_shape)
        self._register("prior", "decoder", "likelihood")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.vae.prior())
            pyro.sample("x", seen(self.vae.decode(z), visible), obs=torch.where(visible, x, 0.0))
        return z

    def guide(self, x: Tensor, visible: Tensor) -> Tensor:
        """The guide q(z|x_V); arguments: see :meth:`model`."""
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encode(x, visible))

    def encode(self, x: Tensor, visible: Tensor) -> TorchDistributionMixin:
        """Return q(z|x_V), with event shape ``(Z,)``; arguments: see :meth:`model`."""
        visible = check_visible(visible, x, self.vae.data_shape)
        if self.background is None:
            return self.vae.encode(x, visible)
        return self.vae.encode(torch.where(visible, x, self.background))

    def _register(self, *parts: str) -> None:
        for part in parts:
            if isinstance(module := getattr(self.vae, part, None), nn.Module):
                register(f"{getattr(self.vae, 'name', type(self.vae).__name__)}.{part}", module)


def square(u: Tensor, data_shape: Sequence[int]) -> Tensor:
    """Hide a rectangle of half the height and half the width.

    Args:
        u: Position of the rectangle's upper left corner, shape ``(..., 2)``: a vertical and a horizontal number in [0, 1).
        data_shape: Shape of one datum, ``(..., H, W)``.

    Returns:
        The mask, True where a pixel is visible, shape ``(..., H, W)``.
    """
    height, width = data_shape[-2:]
    rows, columns = torch.arange(height).to(u), torch.arange(width).to(u)
    top, left = (u[..., k, None] * (n - n // 2 + 1) // 1 for k, n in enumerate((height, width)))
    inside_rows = (rows >= top) & (rows < top + height // 2)
    inside_columns = (columns >= left) & (columns < left + width // 2)
    return ~(inside_rows[..., :, None] & inside_columns[..., None, :])


def half(u: Tensor, data_shape: Sequence[int]) -> Tensor:
    """Show one half of the image: upper, lower, left or right.

    The numbers ``u``, shape ``(..., 2)``, in [0, 1), select the half.
    """
    height, width = data_shape[-2:]
    row, column = torch.arange(height).to(u)[:, None] < height // 2, torch.arange(width).to(u) < width // 2
    row, column = row.expand(height, width), column.expand(height, width)
    return torch.stack([row, ~row, column, ~column])[(u[..., 0] * 4).long().clamp(max=3)]


def pixels(u: Tensor, data_shape: Sequence[int]) -> Tensor:
    """Show each pixel at random, with probability ``u[..., 0]``."""
    return (u[..., 1:] < u[..., :1]).unflatten(-1, tuple(data_shape[-2:]))


#: Kinds of masks by name: a function from height and width to the number of uniform random numbers that a mask needs, and
#: the function that makes the mask from these numbers.
MASKS: dict[str, tuple[Callable[[int, int], int], Callable[[Tensor, Sequence[int]], Tensor]]] = {
    "square": (lambda *_size: 2, square),
    "half": (lambda *_size: 1, half),
    "pixels": (lambda height, width: 1 + height * width, pixels),
}


#: The share of data with all pixels visible in training.
WHOLE = 0.5


class InpaintingVAE(VAE):
    r"""A VAE trained with random masks, which its encoder takes as input.

    .. math:: \mathcal L(x) = E_{p(V)} E_{q(z|x_V, V)}[\log p(z) + \log p(x_V|z) - \log q(z|x_V, V)] \le E_{p(V)} \log p(x_V)

    Here V is the set of visible pixels. L(x) bounds the mean log likelihood of the visible pixels. At the optimum q is the
    posterior given the visible pixels; :func:`pyro_vae.evidence.inpaint` uses q as a proposal to fill the hidden pixels. In
    training the guide draws a new mask for each datum at each call. All particles of a datum share its mask, and the model
    scores only the visible pixels. Half of the data keep all pixels visible, since the model learns nothing about the
    dependence of two pixels if no mask shows both. In ``eval()`` mode all pixels are visible, and the model is a VAE. If a
    trained decoder is frozen (``requires_grad_(False)``), only the encoder is trained. Objectives that run the guide twice for
    one draw (``stl``, ``dreg``) refuse this model.

    Args:
        data_shape: Shape of one datum, an image: ``(..., H, W)``.
        latent_dim: See :class:`VAE`.
        hidden: See :class:`VAE`.
        activation: See :class:`VAE`.
        encoder: Module from images of shape ``(..., 2 C, H, W)`` to the parameters of q, shape ``(..., num_params)``; or a
            callable that makes the module. The first C channels are the pixels (0 where hidden), the last C are the mask.
        mask: The kind of mask in training, a name from ``MASKS``.
        **options: See :class:`VAE`; the likelihood must have independent pixels.

    Raises:
        ValueError: If a size is out of range, a name is unknown, or a datum is not an image.

    References:
        Ivanov, Figurnov, Vetrov, "Variational Autoencoder with Arbitrary Conditioning", 2019; Mattei, Frellsen, "MIWAE:
        Deep Generative Modelling and Imputation of Incomplete Data Sets", 2019, eq. 4.
    """

    trained_on: ClassVar[str] = "what was visible"

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        encoder: NetworkLike = None,
        mask: str = "square",
        **options: Unpack[PartOptions],
    ) -> None:
        if len(data_shape) < 2 or min(data_shape[-2:]) < 2:
            raise ValueError(
                f"data_shape: expected images of at least 2 x 2 pixels, got {tuple(data_shape)}; use another model."
            )
        # The encoder is made last: the posterior determines the size of its output.
        super().__init__(data_shape, latent_dim, hidden, activation, encoder=nn.Identity(), **options)
        pixels_and_mask = (2 * self.data_shape[0], *self.data_shape[1:])
        self.encoder = self.make_network(encoder, [pixels_and_mask], (self.posterior.num_params,), hidden)
        count, self.make_mask = lookup("mask", mask, MASKS)
        self.num_uniform = count(*self.data_shape[-2:])
        self._drawn = _Drawn()

    def model(self, x: Tensor) -> Tensor:
        """The generative model p(z) p(x_V|z); arguments: see :meth:`VAE.model`.

        In training, V is the set of visible pixels that the guide drew for ``x``. If the guide drew none, V is all pixels.
        """
        # Frozen parts are not registered: Pyro warns about parameters without a gradient.
        parts = [p for p in ("prior", "decoder", "likelihood") if _is_trained(getattr(self, p))]
        self._register(*parts)
        visible = self._drawn.of(x) if self.training else None
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            p = self.decode(z)
            pyro.sample("x", p if visible is None else seen(p, visible), obs=x)
        return z

    def guide(self, x: Tensor) -> Tensor:
        """The guide q(z|x_V, V); arguments: see :meth:`VAE.guide`.

        In training, the guide draws a new set V of visible pixels for each datum. In eval mode, V is all pixels.
        """
        self._register("encoder", "posterior")
        visible = self._drawn.keep(x, self.draw_mask(x)) if self.training else None
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encode(x, visible))

    def encode(self, x: Tensor, visible: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x_V, V), the posterior given the visible pixels V.

        Args:
            x: Data, shape ``(..., *data_shape)``; hidden pixels have no effect.
            visible: Bool mask, True where a pixel is visible; the shape broadcasts to the shape of ``x``. None: all pixels
                are visible.

        Returns:
            A distribution with event shape ``(Z,)``.
        """
        x = self._checked(x)
        mask = torch.ones_like(x) if visible is None else visible.to(x)
        x, mask = torch.broadcast_tensors(x if visible is None else torch.where(visible, x, 0.0), mask)
        return self.posterior(self.encoder(torch.cat([x, mask], dim=-len(self.data_shape))))

    def draw_mask(self, x: Tensor) -> Tensor:
        """Draw a bool mask for each datum, shape ``(B, *data_shape)``.

        The channels of an image share one mask. With probability ``WHOLE``, a mask shows all pixels.
        """
        plane = self.make_mask(torch.rand(len(x), self.num_uniform, device=x.device), self.data_shape)
        plane = plane | (torch.rand(len(x), 1, 1, device=x.device) < WHOLE)
        missing = len(self.data_shape) - 2
        return plane.reshape(len(x), *(1,) * missing, *plane.shape[-2:]).expand(x.shape)


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


class _Drawn:
    """The last mask drawn by the guide, kept for the model.

    Copies and pickles do not contain the mask.
    """

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.visible: Tensor | None = None

    def keep(self, x: Tensor, visible: Tensor) -> Tensor:
        self.x, self.visible = x, visible
        return visible

    def of(self, x: Tensor) -> Tensor | None:
        """Return the mask that the guide drew for ``x``, else None."""
        return self.visible if x is self.x else None

    def __deepcopy__(self, memo: object) -> _Drawn:
        return _Drawn()

    def __reduce__(self) -> tuple[type[_Drawn], tuple[()]]:
        return _Drawn, ()
