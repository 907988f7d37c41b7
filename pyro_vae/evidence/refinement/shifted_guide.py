"""Distributions of a guide whose parameters are moved for each datum."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to, transform_to
from torch.distributions.constraints import Constraint

from pyro_vae.inference.program.sites import Site

#: Function from a parameter's unconstrained value and unit to the new unconstrained value.
Change = Callable[[Tensor, Tensor | float], Tensor]

# Alternative names of one parameter; the first name that a distribution has is moved.
_SYNONYMS = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))


def zero_offsets(fn: TorchDistributionMixin) -> list[Tensor]:
    """Make zero offsets for the unconstrained parameters of a distribution.

    Returns:
        A tensor of zeros for each parameter, in the parameter's unconstrained shape; an empty list for a Delta.

    Raises:
        ValueError: See :func:`shifted`.
    """
    zeros: list[Tensor] = []

    def record(value: Tensor, _unit: Tensor | float) -> Tensor:
        zeros.append(torch.zeros_like(value))
        return value

    _rebuild(fn, record)
    return zeros


def shifted(fn: TorchDistributionMixin, offsets: Iterable[Tensor]) -> TorchDistributionMixin:
    r"""Move the parameters of a distribution by offsets.

    .. math:: \theta' = T\big(T^{-1}(\theta) + u\,\delta\big)

    where :math:`\theta` is a parameter, :math:`\delta` its offset, and T is ``biject_to`` of the parameter's constraint: a
    scale moves in its logarithm, logits move directly. The unit u is the distribution's own scale for a location and for
    entries below the diagonal of a Cholesky factor; for every other parameter u is 1. In ``Independent`` and
    ``TransformedDistribution``, the parameters of the base distribution move; the transforms stay unchanged.

    Args:
        fn: The distribution; one of its batch dimensions runs over the data.
        offsets: Offsets in the layout of :func:`zero_offsets`; each broadcasts to the left, over draws and enumerated values.

    Returns:
        The distribution with moved parameters, of the same family and shape.

    Raises:
        ValueError: If a parameter has no unconstrained coordinates or bounds the support, or if the shape of an offset shows
            that it was made for other data.
    """
    remaining = iter(offsets)

    def move(value: Tensor, unit: Tensor | float) -> Tensor:
        offset = next(remaining)
        if value.shape[value.dim() - offset.dim() :] != offset.shape:
            raise ValueError(
                f"refined guide: expected the data that it was refined for, with a parameter of shape {tuple(offset.shape)}, "
                f"got {tuple(value.shape)}; refine the guide for these data."
            )
        return value + unit * offset

    return _rebuild(fn, move)


def _rebuild(fn: TorchDistributionMixin, change: Change) -> TorchDistributionMixin:
    """Rebuild a distribution with changed parameters."""
    name = type(fn).__name__
    if name == "Delta":
        return fn
    if name == "Independent":
        return dist.Independent(_rebuild(fn.base_dist, change), fn.reinterpreted_batch_ndims)
    if name == "TransformedDistribution":
        return dist.TransformedDistribution(_rebuild(fn.base_dist, change), fn.transforms)
    if fn.has_rsample and isinstance(inspect.getattr_static(type(fn), "support"), property):
        raise _immovable(fn)  # a support that moves with the parameters, such as Uniform's
    moved, kept = _constructor_arguments(fn)
    if not moved or any(not hasattr(fn, argument) for argument in kept):
        raise _immovable(fn)
    return type(fn)(**{p: _changed(fn, p, change) for p in moved}, **{p: getattr(fn, p) for p in kept})


def _constructor_arguments(fn: TorchDistributionMixin) -> tuple[list[str], list[str]]:
    """Return the names of the parameters and of the other required arguments."""
    arguments = inspect.signature(type(fn).__init__).parameters
    moved = [name for name in arguments if name in fn.arg_constraints]
    for synonyms in _SYNONYMS:
        present = [name for name in synonyms if name in moved]
        moved = [name for name in moved if name not in present[1:]]
    kept = [
        name
        for name, p in arguments.items()
        if p.default is p.empty
        and p.kind is p.POSITIONAL_OR_KEYWORD
        and name != "self"
        and name not in fn.arg_constraints
    ]
    return moved, kept


def _changed(fn: TorchDistributionMixin, name: str, change: Change) -> Tensor:
    """Apply ``change`` to one parameter; return the new value."""
    value: Tensor = getattr(fn, name)
    constraint: Constraint = fn.arg_constraints[name]
    if constraint.is_discrete:  # a number of trials
        return value
    try:
        transform = _to_constrained(constraint)
    except NotImplementedError as error:
        raise _immovable(fn) from error
    return transform(change(transform.inv(value), _unit_of(fn, name, value)))


def _to_constrained(constraint: Constraint) -> Transform:
    """Return the transform from unconstrained coordinates to a constraint's values."""
    try:
        return biject_to(constraint)
    except NotImplementedError:  # torch has no biject_to for a Cholesky factor
        return transform_to(constraint)


def _unit_of(fn: TorchDistributionMixin, name: str, value: Tensor) -> Tensor | float:
    """Return the unit of a parameter's offset: the distribution's scale, or 1.

    The unit of a location is the scale. Below the diagonal of a Cholesky factor of size Z, the unit is the row's diagonal entry
    divided by sqrt(Z), because all Z numbers of a row move at once. For every other number, the unit is 1.
    """
    if name == "scale_tril":
        rows = value.detach().diagonal(dim1=-2, dim2=-1)[..., None].expand_as(value) / value.shape[-1] ** 0.5
        return torch.where(torch.eye(value.shape[-1], dtype=torch.bool, device=value.device), 1.0, rows)
    for measure in ("scale", "stddev") if name == "loc" else ():
        unit = getattr(fn, measure, None)
        if isinstance(unit, Tensor) and unit.shape == value.shape:
            return unit.detach()
    return 1.0


def _immovable(fn: TorchDistributionMixin) -> ValueError:
    return ValueError(
        f"refine: expected guide distributions whose parameters can be moved freely, such as Normal, got "
        f"{type(fn).__name__}; use importance_sampling."
    )


def with_covariance(fn: TorchDistributionMixin) -> TorchDistributionMixin:
    """Convert a vector of independent normals to the equivalent multivariate normal.

    The multivariate normal has a covariance, which offsets can move. Other distributions are returned unchanged.
    """
    if type(fn).__name__ != "Independent" or fn.reinterpreted_batch_ndims != 1:
        return fn
    inner = fn.base_dist
    if type(inner).__name__ != "Normal":
        return fn
    return dist.MultivariateNormal(inner.loc, scale_tril=inner.scale.diag_embed())


class Shift(Messenger):
    """Effect handler that moves the parameters of sample sites by offsets.

    Args:
        offsets: Offsets of each site's parameters, by site name.
        full_covariance: Give vectors of independent normals a covariance, see :func:`with_covariance`.
        path_only: Let the log-probability of a reparameterized site depend on the offsets only through the site's draw. This
            leaves out the score term of the gradient, whose mean is zero.

    References:
        Roeder, Wu, Duvenaud, "Sticking the Landing", 2017, for ``path_only``.
    """

    def __init__(
        self, offsets: Mapping[str, Sequence[Tensor]], full_covariance: bool = False, path_only: bool = False
    ) -> None:
        super().__init__()
        self.offsets, self.full_covariance, self.path_only = offsets, full_covariance, path_only

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] not in self.offsets or msg["is_observed"]:
            return
        fn, offsets = msg["fn"], self.offsets[msg["name"]]
        if self.full_covariance:
            fn = with_covariance(fn)
        msg["fn"] = shifted(fn, offsets)
        if self.path_only and fn.has_rsample:
            msg["fn"] = _PathOnly(msg["fn"], shifted(fn, [offset.detach() for offset in offsets]))


class _PathOnly(TorchDistribution):
    """Distribution that draws from one distribution and computes log-probabilities by another."""

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, drawn: TorchDistributionMixin, scored: TorchDistributionMixin) -> None:
        self.drawn, self.scored = drawn, scored
        super().__init__(drawn.batch_shape, drawn.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        return self.drawn.support

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.drawn.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.scored.log_prob(value)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> _PathOnly:
        return _PathOnly(self.drawn.expand(batch_shape), self.scored.expand(batch_shape))
