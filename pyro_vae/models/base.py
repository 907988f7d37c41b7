"""The base classes of the package's models."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypedDict, TypeVar, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.distributions import LIKELIHOODS, POSTERIORS, PRIORS, Likelihood, Prior
from pyro_vae.errors import check_count
from pyro_vae.lookup import parse_part
from pyro_vae.networks.base import Shapes
from pyro_vae.networks.build import JoinedNetworkLike, NetworkFactory, NetworkLike, NetworkMaker
from pyro_vae.registration import register

P = TypeVar("P", bound=nn.Module)

# The model that holds each name in Pyro's parameter store. Two models with the same name would share the parameters of the
# first model, and the second model would silently never train. The name of a deleted model is not used again, since the
# parameters stay in the store.
_HOLDERS: dict[str, weakref.ref[nn.Module]] = {}


_NUMBERS = itertools.count(2)


class Model(nn.Module):
    """Base class of models: the Pyro functions ``model(*inputs)`` and ``guide(*inputs)``.

    Both functions draw all sites within one plate ``"data"``. Both register their networks with Pyro by calling ``_register``.

    Args:
        data_shape: Shape of one datum, such as ``(1, 28, 28)``.
        latent_dim: Size Z of the latent vector.

    Attributes:
        takes: Names of the inputs of ``model`` and ``guide``, in order. ``"x"`` stands for data of shape
            ``(B, *data_shape)``, ``"y"`` for labels of shape ``(B,)``, int64, -1 where unknown.
        has_bound: True if the model's objective bounds log p(x). The plain autoencoder's objective bounds nothing.
        objective: Name of the default training objective; None for ``"trace"``.

    Raises:
        ValueError: If ``latent_dim`` or a size in ``data_shape`` is below 1.
    """

    takes: ClassVar[tuple[str, ...]] = ("x",)
    has_bound: ClassVar[bool] = True
    objective: ClassVar[str | None] = None

    def __init__(self, data_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        if min(data_shape, default=0) < 1:
            raise ValueError(f"data_shape: expected positive sizes such as (1, 28, 28), got {tuple(data_shape)}.")
        self.data_shape, self.latent_dim = tuple(data_shape), latent_dim

    @property
    def name(self) -> str:
        """The unique name under which this instance registers its networks."""
        kind = type(self).__name__.lower()
        held = self.__dict__.get("_name", kind)
        while held in _HOLDERS and _HOLDERS[held]() is not self:
            held = f"{kind}_{next(_NUMBERS)}"
        if held not in _HOLDERS:
            _HOLDERS[held] = weakref.ref(self)
            self.__dict__["_name"] = held
        return held

    def _register(self, *parts: str) -> None:
        """Register networks with Pyro.

        Args:
            *parts: Names of the attributes that hold the networks.
        """
        for part in parts:
            register(f"{self.name}.{part}", getattr(self, part))

    def _checked(self, x: Tensor) -> Tensor:
        """Return ``x`` if its shape is ``(..., *data_shape)``, else raise an error."""
        if x.shape[-len(self.data_shape) :] != self.data_shape:
            raise ValueError(f"x: expected shape (..., {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}.")
        return x


class PartOptions(TypedDict, total=False):
    """Keyword arguments of :class:`LatentModel` except ``encoder``."""

    likelihood: str | nn.Module
    posterior: str | nn.Module
    prior: str | nn.Module
    network: str | NetworkMaker
    decoder: NetworkLike | JoinedNetworkLike


class ModelOptions(PartOptions, total=False):
    """Keyword arguments of :class:`LatentModel`."""

    encoder: NetworkLike | JoinedNetworkLike


class LatentModel(Model):
    r"""Base class of models with a prior, a likelihood and an encoder.

    Arguments: see :class:`pyro_vae.VAE`.
    """

    #: The subclass's method from data to q(z|x), event shape ``(Z,)``.
    encode: Callable[..., TorchDistributionMixin]

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "tanh",
        *,
        likelihood: str | nn.Module = "bernoulli",
        posterior: str | nn.Module = "normal",
        prior: str | nn.Module = "normal",
        network: str | NetworkMaker = "mlp",
        encoder: NetworkLike | JoinedNetworkLike = None,
        decoder: NetworkLike | JoinedNetworkLike = None,
    ) -> None:
        super().__init__(data_shape, latent_dim)
        self.likelihood = make_part("likelihood", likelihood, LIKELIHOODS, self.data_shape)
        self.posterior = make_part("posterior", posterior, POSTERIORS, latent_dim)
        self.prior = make_part("prior", prior, PRIORS, latent_dim)
        self.make_network = NetworkFactory(network, activation)
        self.encoder = self.make_network(encoder, self._encoder_inputs(), (self.posterior.num_params,), hidden)
        self.decoder = self.make_network(decoder, self._decoder_inputs(), self.data_shape, hidden[::-1])
        if isinstance(self.prior, Prior):
            self.prior.connect(self.data_shape, self.encode)

    def _encoder_inputs(self) -> Shapes:
        """Shapes of the encoder's inputs."""
        return (self.data_shape,)

    def _decoder_inputs(self) -> Shapes:
        """Shapes of the decoder's inputs."""
        return ((self.latent_dim,),)

    @torch.no_grad()
    def center_output(self, mean: Tensor, scale: float | None = None) -> None:
        """Set the decoder's bias so that p(x|z) starts at the data's mean.

        The decoder then starts near the best decoder that ignores z, so training need not learn the background first.

        Args:
            mean: Mean of the training data, shape ``data_shape``.
            scale: Standard deviation of the training data about ``mean``, over all pixels. Only a likelihood with a learned
                scale, such as ``"normal"``, uses ``scale``. None: leave the scale unchanged.

        Raises:
            ValueError: If ``mean`` has another shape, or the decoder has no layer ``head`` with one bias for each pixel.
        """
        if tuple(mean.shape) != self.data_shape:
            raise ValueError(f"mean: expected shape {self.data_shape}, got {tuple(mean.shape)}.")
        set_output_bias(self.decoder, self.likelihood, mean)
        if scale is not None:
            self.likelihood.start_at(scale)


def set_output_bias(decoder: nn.Module, likelihood: Likelihood, mean: Tensor) -> None:
    """Set the decoder's output bias so that p(x|z) starts at ``mean``.

    Raises:
        ValueError: If the decoder has no layer ``head`` with one bias for each pixel.
    """
    bias = getattr(getattr(decoder, "head", None), "bias", None)
    if not isinstance(bias, Tensor) or bias.numel() != mean.numel():
        raise ValueError(
            f"decoder: center_output needs a linear `head` with one bias for each pixel, but {type(decoder).__name__} has "
            "none; add the layer."
        )
    bias.copy_(likelihood.bias(mean).reshape(-1))


def mean_image(p: TorchDistributionMixin) -> Tensor:
    """Return the mean of p(x|z), shape ``(..., *data_shape)``.

    If ``p`` has no mean of its own but wraps another distribution, return the mean of the wrapped distribution.
    """
    return p.mean if hasattr(p, "mean") else p.base_dist.mean


def make_part(kind: str, given: str | nn.Module, table: Mapping[str, type[P]], first: object) -> P:
    """Make a likelihood, prior or posterior from its name.

    Args:
        kind: The kind of part, such as ``"prior"``, for the error message.
        given: A name with arguments, ``"NAME:ARG:ARG"``; or a module, which is returned unchanged.
        table: The known classes of this kind, by name.
        first: The first argument of the constructor of the class; the ARGs follow it.

    Raises:
        ValueError: If ``given`` is an unknown name, a class, or neither a name nor a module.
    """
    if isinstance(given, type) and issubclass(given, nn.Module):
        name = given.__name__
        raise ValueError(
            f"{kind}: expected a name or a module, got the class {name}; pass an instance, {name}({first!r})."
        )
    check_name_or_module(kind, given)
    if isinstance(given, nn.Module):
        return cast(P, given)  # a user's part need not derive from the base class
    cls, args = parse_part(kind, given, table)
    make: Callable[..., P] = cls
    return make(first, *args)


def check_name_or_module(kind: str, given: object) -> None:
    """Check that a model's part is a name or a module.

    Raises:
        ValueError: If ``given`` is neither a string nor a module.
    """
    if not isinstance(given, str | nn.Module):
        raise ValueError(f"{kind}: expected a name or a module, got {given!r}; give a name or a module.")
