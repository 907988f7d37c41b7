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

# The holder of each name in the parameter store. Two models under one name would share the first one's parameters, and the
# second would silently never train. A name is not given again when its holder is gone, since its parameters stay there.
_HOLDERS: dict[str, weakref.ref[nn.Module]] = {}


_NUMBERS = itertools.count(2)


class Model(nn.Module):
    """A generative model with its guide: Pyro functions ``model(*inputs)`` and ``guide(*inputs)``.

    Each draws its sites within one plate ``"data"`` and registers the networks it uses by ``_register``.

    Args:
        data_shape: Shape of one datum, such as ``(1, 28, 28)``.
        latent_dim: Z, the size of the latent vector.

    Attributes:
        takes: The inputs of ``model`` and ``guide``, in order: ``"x"``, data of shape ``(B, *data_shape)``, and ``"y"``,
            labels of shape ``(B,)``, int64, -1 where unknown.
        has_bound: True if its objective bounds log p(x); the plain autoencoder's does not.
        objective: The objective it is trained with if none is named; None: any.

    Raises:
        ValueError: If a size is below 1.
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
        """Register networks, by the names of their attributes, as ``pyro.module`` does."""
        for part in parts:
            register(f"{self.name}.{part}", getattr(self, part))

    def _checked(self, x: Tensor) -> Tensor:
        """Return ``x``; refuse a shape other than ``(..., *data_shape)``."""
        if x.shape[-len(self.data_shape) :] != self.data_shape:
            raise ValueError(f"x: expected shape (..., {', '.join(map(str, self.data_shape))}), got {tuple(x.shape)}.")
        return x


class PartOptions(TypedDict, total=False):
    """Keywords of :class:`LatentModel`, but for the encoder."""

    likelihood: str | nn.Module
    posterior: str | nn.Module
    prior: str | nn.Module
    network: str | NetworkMaker
    decoder: NetworkLike | JoinedNetworkLike


class ModelOptions(PartOptions, total=False):
    """Keywords of :class:`LatentModel`."""

    encoder: NetworkLike | JoinedNetworkLike


class LatentModel(Model):
    r"""Base class of models with prior, likelihood and amortized posterior.

    Arguments: see :class:`pyro_vae.VAE`.
    """

    #: Data to q(z|x), event shape ``(Z,)``; a method of the class.
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
        """Let p(x|z) start at the data's mean, with their scale.

        This is the decoder's optimum without latent information; training need not first learn the background.

        Args:
            mean: Mean of the training data, shape ``data_shape``.
            scale: Standard deviation of the training data about this mean, over all pixels. Only a likelihood with a
                learned scale, such as ``"normal"``, uses it. None: leave that scale as it is.

        Raises:
            ValueError: If the shape is another one, or the decoder has no ``head`` with a bias of that size.
        """
        if tuple(mean.shape) != self.data_shape:
            raise ValueError(f"mean: expected shape {self.data_shape}, got {tuple(mean.shape)}.")
        set_output_bias(self.decoder, self.likelihood, mean)
        if scale is not None:
            self.likelihood.start_at(scale)


def set_output_bias(decoder: nn.Module, likelihood: Likelihood, mean: Tensor) -> None:
    """Set the output bias so that p(x|z) has the mean ``mean``.

    Raises:
        ValueError: If the decoder has no ``head`` with a bias of that size.
    """
    bias = getattr(getattr(decoder, "head", None), "bias", None)
    if not isinstance(bias, Tensor) or bias.numel() != mean.numel():
        raise ValueError("center_output: expected a decoder with a linear `head` that has one bias a pixel, got none.")
    bias.copy_(likelihood.bias(mean).reshape(-1))


def mean_image(p: TorchDistributionMixin) -> Tensor:
    """Return the mean of p(x|z), shape ``(..., *data_shape)``.

    It is the mean of the base distribution if the wrapper has none.
    """
    return p.mean if hasattr(p, "mean") else p.base_dist.mean


def make_part(kind: str, given: str | nn.Module, table: Mapping[str, type[P]], first: object) -> P:
    """Make a likelihood, prior or posterior from its name.

    Args:
        kind: The kind of part, for the error.
        given: ``"NAME:ARG:ARG"``; or a module, which is returned.
        table: The classes by name.
        first: The first argument of their constructors.

    Raises:
        ValueError: If the name is unknown, or it is neither a name nor a module.
    """
    check_name_or_module(kind, given)
    if isinstance(given, nn.Module):
        return cast(P, given)  # a user's part need not be of the base class
    cls, args = parse_part(kind, given, table)
    make: Callable[..., P] = cls
    return make(first, *args)


def check_name_or_module(kind: str, given: object) -> None:
    """Refuse what is neither a name nor a module.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(given, str | nn.Module):
        raise ValueError(f"{kind}: expected a name or a module, got {given!r}; give one of these.")
