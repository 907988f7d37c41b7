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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeGuard, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.data import Data, Inputs, Split, Stored
from pyro_vae.data.labels import UNKNOWN, check_labels
from pyro_vae.system.randomness import own_randomness

#: The columns of the data.
COLUMNS = ("x", "y")

#: What a likelihood may ask of pixels: 0 and 1, numbers in [0, 1], any numbers.
SUPPORTS = ("binary", "unit", "real")

#: What ``fit`` takes as training data.
Given = Data | Tensor | Stored | tuple[Tensor, ...]


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


def loss_of(model: Any) -> str:
    """What a model without a bound makes small: its squared error, where it tells that of a datum."""
    return "squared error" if hasattr(model, "squared_error") else "loss"


def training_inputs(model: Any, split: Split) -> Inputs:
    """What a model is trained on."""
    return split.columns(takes(model))


def evaluation_inputs(model: Any, split: Split) -> Inputs:
    """What it is validated and evaluated on: without labels, if it finds them by itself."""
    return training_inputs(model, split.without_labels() if classifies(model) else split)


def needs(function: Callable[..., Any] | None) -> int:
    """How many arguments a method needs; 0 where there is none."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if function is None:
        return 0
    found = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in found)


def of_columns(function: Callable[..., Any], columns: Sequence[Tensor]) -> Any:
    """A method's value at as many of the columns as it needs: the images alone, or the labels too."""
    return function(*columns[: max(needs(function), 1)])


def as_data(model: Any, given: Given) -> Data:
    """Training data as :class:`Data`: a tensor, or a tuple of the columns that the model takes.

    Raises:
        ValueError: If they are other columns, or of unequal lengths.
    """
    if isinstance(given, Data):
        return given
    columns = given if isinstance(given, tuple) else (given,)
    names = takes(model)
    if len(columns) != len(names):
        raise ValueError(
            f"data: expected {' and '.join(names)}, which {type(model).__name__} takes, got {len(columns)} "
            f"column{'s' * (len(columns) != 1)}; pass {'a tensor' if len(names) == 1 else 'a tuple of them'}."
        )
    x, *y = Inputs(*columns).parts
    return Data("data", Split(x, cast(Tensor, y[0]) if y else None))


def check_model(model: Any, where: str = "") -> None:
    """Refuse what lacks a part of the protocol.

    Args:
        model: The model.
        where: What the sentence calls it; "": its class.

    Raises:
        TypeError: If it is no ``nn.Module``.
        ValueError: If a part is missing or another than it should be.
    """
    where = where or type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: expected a torch.nn.Module, got {type(model).__name__}; make the class one.")
    names = takes(model)
    if names not in (COLUMNS[:1], COLUMNS):
        raise ValueError(f"{where}.takes: expected ('x',) or ('x', 'y'), got {names}; other columns there are none.")
    classes = getattr(model, "num_classes", None)
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise ValueError(
            f"{where}.num_classes: expected how many labels it knows, got {classes!r}; give a whole number."
        )
    _check_words(model, where)
    for part in ("model", "guide"):
        function = getattr(model, part, None)
        if not callable(function):
            raise ValueError(
                f"{where}.{part}: expected a Pyro function of {', '.join(names)}, got none; write {part}(self, "
                f"{', '.join(names)})."
            )
        if (given := _unlike(function, len(names))) is not None:
            raise ValueError(
                f"{where}.{part}: expected a function of {', '.join(names)}, which the class `takes`, got {part}{given}; let "
                "both say the same."
            )


def _check_words(model: Any, where: str) -> None:
    """Refuse attributes that would be read as something else than they say."""
    if not isinstance(bound := getattr(model, "has_bound", True), bool):
        raise ValueError(f"{where}.has_bound: expected True or False, got {bound!r}; correct the class.")
    for name in ("sampled", "trained_on"):
        if not isinstance(words := getattr(model, name, ""), str):
            raise ValueError(f"{where}.{name}: expected words, got {words!r}; correct the class.")
    if (support := support_of(model)) is not None and support not in SUPPORTS:
        raise ValueError(
            f"{where}.likelihood.support: expected one of {', '.join(map(repr, SUPPORTS))}, got {support!r}; correct the "
            "class, or leave it out."
        )


def unregistered(name: str) -> str:
    """What is wrong with a model whose parameters Pyro never meets: it would stay as it was made."""
    return (
        f"model {name}: expected parameters that Pyro knows of, got a model and a guide that register none, so that nothing "
        'would be trained; begin both with pyro.module("NAME", self), or a pyro_vae.models.Model with self._register("PART").'
    )


def unsaved(parameter: str) -> str:
    """What is wrong with a parameter that the store alone holds: no checkpoint of the model has it."""
    return (
        f"parameter {parameter!r}: expected a parameter of the model's modules, got one of pyro.param alone, which fit could "
        "not save; make it an nn.Parameter or a PyroParam of the model."
    )


def check_columns(model: Any, data: Data) -> None:
    """Refuse data that lack what a model takes, or whose labels it does not know.

    Raises:
        ValueError: If labels are missing, or there are others than the model has classes for.
    """
    names = takes(model)
    for name, split in data.splits.items():
        if "y" in names and split.y is None:
            raise ValueError(
                f"labels: expected some with {type(model).__name__}, which takes {' and '.join(names)}, got {name} data "
                f"without; take data with labels{', -1 where unknown,' if classifies(model) else ','} or another model."
            )
        if "y" in names and split.y is not None:
            check_labels(split.y, getattr(model, "num_classes", None), not classifies(model))


def warn_of_labels(model: Any, data: Data) -> None:
    """Say of a model that classifies, once, where no label or not every class is known to it in training."""
    y, classes = data.train.y, getattr(model, "num_classes", None)
    if "y" not in takes(model) or not classifies(model) or y is None or y.dim() != 1 or y.is_floating_point():
        return
    known = len(y[y != UNKNOWN].unique())
    name = type(model).__name__
    if known == 0:
        warnings.warn(
            f"labels: expected some for {name}, which learns to classify from them, got -1 (unknown) in every row; what it "
            "calls a class is then its own.",
            stacklevel=3,
        )
    elif classes is not None and known < classes:
        warnings.warn(
            f"labels: expected some of each of the {classes} classes of {name}, got some of {known}; of the others nothing "
            "tells it which is which.",
            stacklevel=3,
        )


def support_of(model: Any) -> str | None:
    """What the data must be, as the model's likelihood says: ``"binary"``, ``"unit"`` or ``"real"``; None: nothing is said."""
    found = getattr(getattr(model, "likelihood", None), "support", None)
    return found if isinstance(found, str) else None  # PyTorch's distributions have another of this name


@torch.no_grad()
def gives_density(model: Any, columns: Inputs) -> bool:
    """Whether log p(x) is a log density, not a log probability: whether an observed site is continuous.

    Args:
        model: The model.
        columns: What it is evaluated on.
    """
    if (support := support_of(model)) is not None:
        return support != "binary"
    return any(not site["fn"].support.is_discrete for site in _observed(model, columns[:2]))


@torch.no_grad()
def evidence_of(model: Any, columns: Inputs | tuple[Tensor, ...]) -> str:
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


def _unlike(function: Any, count: int) -> str | None:
    """The signature of a function that does not take so many columns; None where it does, or none can be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*range(count))
    except TypeError:
        return str(signature)
    return None
