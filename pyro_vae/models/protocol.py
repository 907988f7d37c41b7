"""The protocol of a model: required and optional attributes and methods.

The package's models and a user's models follow the same protocol. A model is an ``nn.Module`` with two Pyro functions of the
same inputs, ``model(*inputs)`` and ``guide(*inputs)``. All sites lie in one plate over the batch, and all parameters belong
to the module. Everything else is optional:

- ``takes`` names the inputs: ``("x",)`` by default, or ``("x", "y")`` with labels of shape ``(B,)``, int64, -1 where unknown.
- ``defaults`` maps flags of data and training to the model's own defaults; ``fit`` uses the defaults of the KL flags.
- ``has_bound`` is False if the objective does not bound log p(x); ``objective`` names the default objective; ``num_classes``
  is the number of labels.
- ``prior()``, ``encode(x)``, ``decode(z)``, ``sample(n)``, ``reconstruct(x)``, ``classify(x)``, ``log_px(x)``,
  ``analogies(x, y)`` and ``center_output(mean, scale)`` are used if they exist; ``encode``, ``reconstruct`` and ``log_px`` may
  take the labels too.
- ``likelihood.support``, ``density`` and ``bits_per_dim``: see :class:`pyro_vae.distributions.Likelihood`.
- ``after_epoch(*inputs)`` is called with training data after each epoch of ``fit``, to update statistics in buffers.
- ``sampled`` describes the draws of ``sample`` if they do not come from the model. ``trained_on`` describes the data that the
  training ELBO covers if it does not cover all of them.

A model with ``classify`` gets labels in training, but not in validation and evaluation. :mod:`pyro_vae.models.checks` refuses
models that break the protocol; docs/extending.md shows how to write a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeGuard, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.data import Inputs, Split
from pyro_vae.system.randomness import own_randomness

T = TypeVar("T")


class PyroModel(Protocol):
    """A model with its guide: an ``nn.Module`` with two Pyro functions."""

    training: bool

    @property
    def model(self) -> Callable[..., object]:
        """The generative model, a Pyro function."""

    @property
    def guide(self) -> Callable[..., object]:
        """The guide, a Pyro function of the same inputs."""

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self, prefix: str = ..., recurse: bool = ..., remove_duplicate: bool = ...
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self, recurse: bool = ...) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...
    def train(self, mode: bool = ...) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, device: torch.device | str | None = ..., dtype: torch.dtype | None = ...) -> Self: ...
    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...


class Encodes(PyroModel, Protocol):
    """A model with ``encode(x)`` or ``encode(x, y)``."""

    @property
    def encode(self) -> Callable[..., TorchDistributionMixin]:
        """The function that maps data, shape ``(..., *data_shape)``, to q(z|x)."""


class Decodes(PyroModel, Protocol):
    """A model with ``prior()`` and ``decode(z)`` or ``decode(z, y)``."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""

    @property
    def prior(self) -> Callable[..., TorchDistributionMixin]:
        """The function that returns p(z), a distribution without batch dimensions."""

    @property
    def decode(self) -> Callable[..., TorchDistributionMixin]:
        """The function that maps latent vectors, shape ``(..., Z)``, to p(x|z)."""


class Autoencodes(Encodes, Decodes, Protocol):
    """A model with ``prior``, ``encode`` and ``decode``, such as a VAE."""


class Classifies(PyroModel, Protocol):
    """A model with ``classify(x)``."""

    @property
    def classify(self) -> Callable[..., Tensor]:
        """The function that maps data to class probabilities.

        Data have the shape ``(..., *data_shape)``, probabilities ``(..., C)``, with C classes.
        """


class Samples(PyroModel, Protocol):
    """A model with ``sample(num_samples)``."""

    @property
    def sample(self) -> Callable[..., Tensor]:
        """The function that draws data, shape ``(num_samples, *data_shape)``."""


class Reconstructs(PyroModel, Protocol):
    """A model with ``reconstruct(x)`` or ``reconstruct(x, y)``."""

    @property
    def reconstruct(self) -> Callable[..., Tensor]:
        """The function that maps data, shape ``(B, *data_shape)``, to mean images."""


class KnowsLogPx(PyroModel, Protocol):
    """A model with ``log_px(x)``, the exact log marginal likelihood."""

    @property
    def log_px(self) -> Callable[..., Tensor]:
        """The function that maps data to log p(x), in nats.

        Data have the shape ``(..., *data_shape)``, the values of log p(x) ``(...)``.
        """


def method_of(model: object, name: str) -> Callable[..., Any] | None:
    """Return a model's optional method, such as ``after_epoch``; None if missing."""
    method = getattr(model, name, None)
    return method if callable(method) else None


def encodes(model: object) -> TypeGuard[Encodes]:
    """Return True if the model has ``encode``."""
    return method_of(model, "encode") is not None


def decodes(model: object) -> TypeGuard[Decodes]:
    """Return True if the model has ``prior`` and ``decode``."""
    return method_of(model, "prior") is not None and method_of(model, "decode") is not None


def samples(model: object) -> TypeGuard[Samples]:
    """Return True if the model has ``sample``."""
    return method_of(model, "sample") is not None


def reconstructs(model: object) -> TypeGuard[Reconstructs]:
    """Return True if the model has ``reconstruct``."""
    return method_of(model, "reconstruct") is not None


def classifies(model: object) -> TypeGuard[Classifies]:
    """Return True if the model has ``classify``, which predicts labels."""
    return method_of(model, "classify") is not None


def knows_log_px(model: object) -> TypeGuard[KnowsLogPx]:
    """Return True if the model has ``log_px``."""
    return method_of(model, "log_px") is not None


def takes(model: object) -> tuple[str, ...]:
    """Return the names of the model's inputs, in order."""
    return tuple(getattr(model, "takes", ("x",)))


def has_bound(model: object) -> bool:
    """Return True if the model's objective bounds log p(x)."""
    return bool(getattr(model, "has_bound", True))


def trained_on(model: object) -> str:
    """Describe the data in the training ELBO; "" if all are included."""
    return str(getattr(model, "trained_on", ""))


def loss_name(model: object) -> str:
    """Return the name of the loss of a model without a bound."""
    return "squared error" if hasattr(model, "squared_error") else "loss"


def training_inputs(model: object, split: Split) -> Inputs:
    """Select the model's inputs for training from a split."""
    return split.inputs(takes(model))


def evaluation_inputs(model: object, split: Split) -> Inputs:
    """Select the model's inputs for evaluation from a split.

    A model with ``classify`` gets -1 (unknown) in place of every label.
    """
    return training_inputs(model, split.without_labels() if classifies(model) else split)


def num_required_arguments(function: Callable[..., object] | None) -> int:
    """Return the number of required positional arguments; 0 for None."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if function is None:
        return 0
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def call_with_inputs(function: Callable[..., T], inputs: Sequence[Tensor]) -> T:
    """Call a model's method with x and the other inputs it requires."""
    return function(*inputs[: max(num_required_arguments(function), 1)])


def data_support(model: object) -> str | None:
    """Return the support that the model's likelihood declares, or None.

    The support is the set of values of a pixel: ``"binary"``, ``"unit"`` or ``"real"``, see
    :class:`pyro_vae.distributions.Likelihood`.
    """
    support = getattr(getattr(model, "likelihood", None), "support", None)
    return support if isinstance(support, str) else None  # in a PyTorch distribution, `support` is a constraint


@torch.no_grad()
def has_density(model: PyroModel, inputs: Inputs) -> bool:
    """Return True if p(x) is a density, False if a probability.

    The likelihood's attribute ``density`` decides. If it is missing, the likelihood's attribute ``support`` decides. If both
    are missing, log p(x) is a log density if an observed site is continuous.
    """
    declared = getattr(getattr(model, "likelihood", None), "density", None)
    if isinstance(declared, bool):
        return declared
    if (support := data_support(model)) is not None:
        return support != "binary"
    return any(not site["fn"].support.is_discrete for site in _observed_sites(model, inputs[:2]))


def has_bits_per_dim(model: PyroModel, inputs: Inputs) -> bool:
    """Return True if log p(x) has a meaning in bits per dimension.

    Bits per dimension are a code length. The likelihood's attribute ``bits_per_dim`` decides; without this attribute,
    bits per dimension have a meaning if log p(x) is a log probability.
    """
    declared = getattr(getattr(model, "likelihood", None), "bits_per_dim", None)
    return declared if isinstance(declared, bool) else not has_density(model, inputs)


@torch.no_grad()
def evidence_name(model: PyroModel, inputs: Inputs | tuple[Tensor, ...]) -> str:
    """Return the name of the model's evidence, such as ``log p(x|y)``.

    A model of x alone, or with ``classify``, has the evidence log p(x). Other models that observe their labels have
    log p(x, y). Models that only take labels as inputs have log p(x|y).
    """
    if "y" not in takes(model) or classifies(model):
        return "log p(x)"
    batch = inputs[:2]
    y = batch[takes(model).index("y")]
    values = [site["value"] for site in _observed_sites(model, batch)]
    observed = any(value.shape == y.shape and torch.equal(value.to(y), y) for value in values)
    return "log p(x, y)" if observed else "log p(x|y)"


def _observed_sites(model: PyroModel, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Run the model and return the observed sites of its density.

    Sites made by ``pyro.deterministic`` (also within ``obs_mask``) and auxiliary losses do not enter the density.
    """
    with own_randomness(0), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        trace = poutine.trace(model.model).get_trace(*batch)
    sites = [trace.nodes[name] for name in trace.observation_nodes]
    return [site for site in sites if not (site["infer"].get("_deterministic") or site["infer"].get("auxiliary_loss"))]
