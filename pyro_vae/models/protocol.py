"""What a model must offer to be trained, evaluated and drawn, checked with a sentence; and what it is given of the data.

The protocol, of the package's own models and a user's alike:

- It is an ``nn.Module`` with Pyro functions ``model(*columns)`` and ``guide(*columns)``, all of whose sites lie in one plate
  of the batch, and whose parameters are those of its modules.
- ``takes`` names these columns: ``("x",)``, which holds where nothing is said, or ``("x", "y")``, with labels of shape
  ``(B,)``, int64, -1 where unknown.
- ``defaults`` are flags of the command line, of data and training, for where the user names none; ``fit`` takes of them the
  weight of the KL and what is asked of it besides.
- ``has_bound`` is False where what it maximizes bounds no log p(x), ``objective`` names the objective that it wants where the
  user names none, ``num_classes`` says how many labels it knows.
- Where they are there, ``classify(x)``, ``log_px(x)``, ``encode(x)``, ``decode(z)``, ``sample(n)``, ``reconstruct(x)`` and
  ``center_output(mean, scale)`` are used; ``log_px``, ``encode`` and ``reconstruct`` may take the other columns too.
- ``prior()``, ``likelihood.support`` and ``analogies(x, y)`` besides; docs/extending.md says what each is for.
- ``after_epoch(*columns)`` is called after each epoch of ``fit`` with training data, for what a model finds of them and keeps
  in buffers; ``sampled`` says in words what ``sample`` draws, where it draws from no model; ``trained_on`` what part of
  the data the training ELBO is of, where it is not all that the model is evaluated on.
- A model with ``classify`` finds labels by itself: it is told those of the training data, and validated and evaluated without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeGuard

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.data import Inputs, Split
from pyro_vae.system.randomness import own_randomness


class PyroModel(Protocol):
    """A model with its guide: an ``nn.Module`` with the Pyro functions ``model(*inputs)`` and ``guide(*inputs)``."""

    training: bool

    @property
    def model(self) -> Callable[..., object]:
        """The generative model."""

    @property
    def guide(self) -> Callable[..., object]:
        """The guide, an approximation of its posterior."""

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self, prefix: str = ..., recurse: bool = ..., remove_duplicate: bool = ...
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self, recurse: bool = ...) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def train(self, mode: bool = ...) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, device: torch.device | str | None = ..., dtype: torch.dtype | None = ...) -> Self: ...
    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...


class Encodes(PyroModel, Protocol):
    """A model with ``encode(x)`` or ``encode(x, y)``: the distribution of its latent vector given data."""

    @property
    def encode(self) -> Callable[..., TorchDistributionMixin]:
        """Data, shape ``(..., *data_shape)``, to q(z|x)."""


class Decodes(PyroModel, Protocol):
    """A model with ``prior()`` and ``decode(z)`` or ``decode(z, y)``."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""

    @property
    def prior(self) -> Callable[..., TorchDistributionMixin]:
        """p(z), without a batch shape."""

    @property
    def decode(self) -> Callable[..., TorchDistributionMixin]:
        """Latent vectors, shape ``(..., Z)``, to p(x|z)."""


class Autoencodes(Encodes, Decodes, Protocol):
    """A model with ``prior``, ``encode`` and ``decode``, as a VAE has."""


class Classifies(PyroModel, Protocol):
    """A model with ``classify(x)``: the probabilities of its labels, shape ``(..., C)``."""

    @property
    def classify(self) -> Callable[..., Tensor]:
        """Data, shape ``(..., *data_shape)``, to class probabilities."""


class Samples(PyroModel, Protocol):
    """A model with ``sample(num_samples)``: draws of data."""

    @property
    def sample(self) -> Callable[..., Tensor]:
        """A number of draws to data, shape ``(num_samples, *data_shape)``."""


class Reconstructs(PyroModel, Protocol):
    """A model with ``reconstruct(x)`` or ``reconstruct(x, y)``."""

    @property
    def reconstruct(self) -> Callable[..., Tensor]:
        """Data, shape ``(B, *data_shape)``, to mean images of the same shape."""


class KnowsLogPx(PyroModel, Protocol):
    """A model with ``log_px(x)``, the exact log marginal likelihood."""

    @property
    def log_px(self) -> Callable[..., Tensor]:
        """Data, shape ``(..., *data_shape)``, to nats, shape ``(...)``."""


def method_of(model: object, name: str) -> Callable[..., Any] | None:
    """An optional method of a model, such as ``"after_epoch"``; None if it has none."""
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


def knows_log_px(model: object) -> TypeGuard[KnowsLogPx]:
    """Return True if the model has ``log_px``."""
    return method_of(model, "log_px") is not None


def takes(model: Any) -> tuple[str, ...]:
    """The columns that a model takes, in order."""
    return tuple(getattr(model, "takes", ("x",)))


def classifies(model: object) -> TypeGuard[Classifies]:
    """Return True if the model has ``classify``: it finds labels by itself."""
    return method_of(model, "classify") is not None


def has_bound(model: Any) -> bool:
    """Whether its objective bounds log p(x)."""
    return bool(getattr(model, "has_bound", True))


def trained_on(model: Any) -> str:
    """In words what its training ELBO is of, where that is a part of the data alone; "" where it is the data."""
    return str(getattr(model, "trained_on", ""))


def loss_name(model: Any) -> str:
    """What a model without a bound makes small: its squared error, where it tells that of a datum."""
    return "squared error" if hasattr(model, "squared_error") else "loss"


def training_inputs(model: Any, split: Split) -> Inputs:
    """What a model is trained on."""
    return split.inputs(takes(model))


def evaluation_inputs(model: Any, split: Split) -> Inputs:
    """What it is validated and evaluated on: without labels, if it finds them by itself."""
    return training_inputs(model, split.without_labels() if classifies(model) else split)


def num_required_arguments(function: Callable[..., Any] | None) -> int:
    """How many arguments a method needs; 0 where there is none."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if function is None:
        return 0
    found = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in found)


def call_with_inputs(function: Callable[..., Any], columns: Sequence[Tensor]) -> Any:
    """A method's value at as many of the columns as it needs: the images alone, or the labels too."""
    return function(*columns[: max(num_required_arguments(function), 1)])


def data_support(model: Any) -> str | None:
    """What the data must be, as the model's likelihood says: ``"binary"``, ``"unit"`` or ``"real"``; None: nothing is said."""
    found = getattr(getattr(model, "likelihood", None), "support", None)
    return found if isinstance(found, str) else None  # PyTorch's distributions have another of this name


@torch.no_grad()
def has_density(model: Any, columns: Inputs) -> bool:
    """Whether log p(x) is a log density, not a log probability: whether an observed site is continuous.

    Args:
        model: The model.
        columns: What it is evaluated on.
    """
    if (support := data_support(model)) is not None:
        return support != "binary"
    return any(not site["fn"].support.is_discrete for site in _observed(model, columns[:2]))


@torch.no_grad()
def evidence_name(model: Any, columns: Inputs | tuple[Tensor, ...]) -> str:
    """What its evidence is called: ``log p(x)``; of a model that needs labels ``log p(x|y)``.

    Of one that needs and observes them it is ``log p(x, y)``.

    Args:
        model: The model.
        columns: What it is evaluated on.
    """
    if "y" not in takes(model) or classifies(model):
        return "log p(x)"
    batch = columns[:2]
    y = batch[takes(model).index("y")]
    seen = any(
        torch.equal(site["value"].to(y), y) for site in _observed(model, batch) if site["value"].shape == y.shape
    )
    return "log p(x, y)" if seen else "log p(x|y)"


def _observed(model: Any, batch: Sequence[Tensor]) -> list[Any]:
    """The observed sites of a run that enter its density: not that of ``pyro.deterministic`` which ``obs_mask`` makes."""
    with own_randomness(0), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        trace = poutine.trace(model.model).get_trace(*batch)
    found = (trace.nodes[name] for name in trace.observation_nodes)
    return [
        site for site in found if not {"_deterministic", "auxiliary_loss"} & {k for k, v in site["infer"].items() if v}
    ]
