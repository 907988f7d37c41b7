r"""A guide's distributions with their parameters moved, datum by datum, in unconstrained coordinates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, transform_to

# Of several names for one parameter, the one that is moved.
_ONE_OF = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))


def zero_offsets(fn: Any) -> list[Tensor]:
    """One zero for each unconstrained coordinate of a distribution's parameters: none for a Delta.

    Raises:
        ValueError: See :func:`shifted`.
    """
    found: list[Tensor] = []

    def note(value: Tensor, unit: Any) -> Tensor:
        found.append(torch.zeros_like(value))
        return value

    _rebuilt(fn, note)
    return found


def shifted(fn: Any, offsets: Iterable[Tensor]) -> Any:
    r"""The distribution of the same family whose parameters are moved by offsets.

    .. math:: \theta' = T\big(T^{-1}(\theta) + u\,\delta\big)

    T is ``biject_to`` of the parameter's constraint: a scale is moved in its logarithm, logits as they are. u is 1, but for
    a location the distribution's own scale, and so for what lies below the diagonal of a Cholesky factor.
    ``Independent`` and ``TransformedDistribution`` are gone into; of the latter the transforms stay.

    Args:
        fn: The distribution, batch shape ``(..., B, ...)``.
        offsets: As :func:`zero_offsets` gives; each broadcasts to the left, over draws and enumerated values.

    Returns:
        The distribution, of the same shape.

    Raises:
        ValueError: If a parameter has no unconstrained coordinates or bounds the support, or an offset is of other data.
    """
    given = iter(offsets)

    def move(value: Tensor, unit: Any) -> Tensor:
        offset = next(given)
        if value.shape[value.dim() - offset.dim() :] != offset.shape:
            raise ValueError(
                f"refined guide: expected the data that it was refined for, {tuple(offset.shape)} a parameter, got "
                f"{tuple(value.shape)}; refine it anew for these."
            )
        return value + unit * offset

    return _rebuilt(fn, move)


def _rebuilt(fn: Any, change: Callable[[Tensor, Any], Tensor]) -> Any:
    name = type(fn).__name__
    if name == "Delta":
        return fn
    if name == "Independent":
        return dist.Independent(_rebuilt(fn.base_dist, change), fn.reinterpreted_batch_ndims)
    if name == "TransformedDistribution":
        return dist.TransformedDistribution(_rebuilt(fn.base_dist, change), fn.transforms)
    if fn.has_rsample and isinstance(inspect.getattr_static(type(fn), "support"), property):
        raise _refusal(fn)  # a support that moves with the parameters, such as Uniform's
    given = inspect.signature(type(fn).__init__).parameters
    names = [n for n in given if n in fn.arg_constraints]
    for alternatives in _ONE_OF:
        held = [n for n in alternatives if n in names]
        names = [n for n in names if n not in held[1:]]
    made = {n: _moved(fn, n, change) for n in names}
    others = [
        n
        for n, p in given.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and n != "self" and n not in fn.arg_constraints
    ]
    if not made or any(not hasattr(fn, n) for n in others):
        raise _refusal(fn)
    return type(fn)(**made, **{n: getattr(fn, n) for n in others})


def _moved(fn: Any, name: str, change: Callable[[Tensor, Any], Tensor]) -> Any:
    value = getattr(fn, name)
    constraint = fn.arg_constraints[name]
    if constraint.is_discrete:  # a count of trials
        return value
    try:
        transform = _transform(constraint)
    except NotImplementedError as error:
        raise _refusal(fn) from error
    return transform(change(transform.inv(value), _unit(fn, name, value)))


def _transform(constraint: Any) -> Any:
    """From the unconstrained coordinates; a Cholesky factor has a transform, but none that torch calls a bijection."""
    try:
        return biject_to(constraint)
    except NotImplementedError:
        return transform_to(constraint)


def _unit(fn: Any, name: str, value: Tensor) -> Any:
    """What a parameter is measured in: a location in its scale before it is moved, and so a row of a Cholesky factor.

    The Z numbers of such a row are each 1 / sqrt(Z) of it, since all move at once.
    """
    if name == "scale_tril":
        rows = value.detach().diagonal(dim1=-2, dim2=-1)[..., None].expand_as(value) / value.shape[-1] ** 0.5
        return torch.where(torch.eye(value.shape[-1], dtype=torch.bool, device=value.device), 1.0, rows)
    for measure in ("scale", "stddev") if name == "loc" else ():
        unit = getattr(fn, measure, None)
        if isinstance(unit, Tensor) and unit.shape == value.shape:
            return unit.detach()
    return 1.0


def _refusal(fn: Any) -> ValueError:
    return ValueError(
        f"refine: expected guide distributions whose parameters can be moved freely, such as Normal, got "
        f"{type(fn).__name__}; use importance_sampling."
    )


def with_covariance(fn: Any) -> Any:
    """A vector of independent normals as a multivariate normal, equal until its covariance is moved; others as they are."""
    inner: Any = getattr(fn, "base_dist", None)
    if type(fn).__name__ != "Independent" or fn.reinterpreted_batch_ndims != 1 or type(inner).__name__ != "Normal":
        return fn
    return dist.MultivariateNormal(inner.loc, scale_tril=inner.scale.diag_embed())


class Shift(Messenger):
    """Moves the parameters of the named sample sites by per-datum offsets.

    Args:
        offsets: Those of each site.
        full_covariance: Whether vectors of independent normals are given a covariance, see :func:`with_covariance`.
        path_only: Whether the log-probability of a reparameterized site follows its draw alone, not its offsets: the
            gradient's score term, zero in the mean, is left out (Roeder, Wu, Duvenaud, "Sticking the Landing", 2017).
    """

    def __init__(
        self, offsets: Mapping[str, Sequence[Tensor]], full_covariance: bool = False, path_only: bool = False
    ) -> None:
        super().__init__()
        self.offsets, self.full_covariance, self.path_only = offsets, full_covariance, path_only

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.offsets or msg["is_observed"]:
            return
        fn, offsets = msg["fn"], self.offsets[msg["name"]]
        if self.full_covariance:
            fn = with_covariance(fn)
        msg["fn"] = shifted(fn, offsets)
        if self.path_only and fn.has_rsample:
            msg["fn"] = _PathOnly(msg["fn"], shifted(fn, [offset.detach() for offset in offsets]))


class _PathOnly(TorchDistribution):
    """Draws from one distribution, scored by another with the same values."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, drawn: Any, scored: Any) -> None:
        self.drawn, self.scored = drawn, scored
        super().__init__(drawn.batch_shape, drawn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.drawn.support

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.drawn.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.scored.log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _PathOnly:
        return _PathOnly(self.drawn.expand(batch_shape), self.scored.expand(batch_shape))
