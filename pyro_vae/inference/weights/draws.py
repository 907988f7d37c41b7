"""Draws of a guide, made in one call or one by one."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Literal, Protocol, TypeVar

import torch
from pyro import poutine, validation_enabled
from torch import Tensor

from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.program.checks import check_guide, check_match, check_scales
from pyro_vae.inference.program.data_plate import find_data_plate
from pyro_vae.inference.program.noise import Noise, NoiseShape
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, subsamples
from pyro_vae.inference.weights.enumeration import enumerated_sites
from pyro_vae.inference.weights.terms import EnumeratedTerms, WeightTerms
from pyro_vae.system.devices import explain_device_error

OuterScale = Literal["refuse", "ignore"]
T = TypeVar("T", WeightTerms, EnumeratedTerms)


class CompiledDraws(Protocol):
    """Cache of compiled graphs that make draws, such as ``CapturedDraws``."""

    def __call__(self, draws: Draws[T], num_samples: int, noise: Noise | None = None, start: int = 0) -> T | None:
        """Return terms of K draws; None if they must be eager."""


class Draws(ABC, Generic[T]):
    """Callable that draws from a guide for one batch of data.

    A call with K makes K draws. The constructor traces model and guide once, finds the data plate and checks the
    traces. All calls use the same data: a subsampling plate keeps the indices of the first trace. Model and guide run
    once for all K draws, inside an additional outermost plate of size K. If they fail inside that plate, or if it
    changes the log weights, they run once for each draw, and a warning is issued.

    Args:
        model: A Pyro model.
        guide: A guide of the model.
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        plate: Name of the data plate; see :func:`find_data_plate`.
        outer_scale: If a site has a ``poutine.scale`` other than 1: ``"refuse"`` raises an error, ``"ignore"`` leaves
            the scale out.
        vectorize: Make all K draws in one call of the guide, inside an outermost plate; if False, in K calls.
        captured: Cache of compiled graphs. The first call never uses it. If None, all draws are eager.

    Attributes:
        data_plate: The data plate.
        model_trace: First trace of the model.
        guide_trace: First trace of the guide.
        sites: Names of the sites that are summed out by enumeration.
        fixed: Trace of the subsampling sites, used by all calls.
        noise_shapes: Size, dtype and device of the noise of each site, by site name.

    Raises:
        ValueError: See ``log_weights``.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: Args,
        kwargs: Kwargs,
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        vectorize: bool = True,
        captured: CompiledDraws | None = None,
    ) -> None:
        if outer_scale not in ("refuse", "ignore"):
            raise ValueError(f"outer_scale: expected 'refuse' or 'ignore', got {outer_scale!r}.")
        check_guide(guide)
        self.args, self.kwargs, self.vectorize, self.captured = args, kwargs, vectorize, captured
        self.guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        self.model_trace = poutine.trace(poutine.replay(model, trace=self.guide_trace)).get_trace(*args, **kwargs)
        self.sites = self._sites_to_sum(enumerated_sites(self.model_trace, self.guide_trace))
        common = self.model_trace
        if unguided := [name for name in self.sites if name not in self.guide_trace.nodes]:
            common = self.model_trace.copy()
            for name in unguided:
                common.remove_node(name)
        check_match(common, self.guide_trace)
        check_kl_scales(common, self.guide_trace)
        if outer_scale == "refuse":
            check_scales(self.model_trace, self.guide_trace)
        self.data_plate = find_data_plate(self.model_trace, self.guide_trace, plate)
        self.fixed = subsamples(Pair(self.model_trace, self.guide_trace))
        self.model = poutine.replay(model, trace=self.fixed)
        self.guide = poutine.replay(guide, trace=self.fixed)
        self.noise_shapes: dict[str, NoiseShape] = {}
        self._compared = False
        self._prepare()

    def _prepare(self) -> None:
        """Hook for a subclass: initialize attributes from the first traces."""

    def _sites_to_sum(self, marked: list[str]) -> list[str]:
        """Return the names of the sites that are summed out by enumeration.

        Args:
            marked: Names of the sites that are marked for enumeration.
        """
        return marked

    @abstractmethod
    def eagerly(self, num_samples: int, noise: Noise | None = None, start: int = 0, /) -> T:
        """Draw by running model and guide; see :meth:`__call__`."""

    def _together(self, num_samples: int, draw: Callable[[int, int], T]) -> T:
        """Return the terms of K draws, ``draw(K, 0)``.

        If model or guide fails inside the outer plate, ``draw(1, k)`` is called for each k < K instead.
        """
        with validation_enabled(False):  # the first trace was validated; Pyro's checks do not allow a particle axis
            if self.vectorize:
                try:
                    return draw(num_samples, 0)
                except (RuntimeError, ValueError, IndexError) as error:
                    if explain_device_error(error) is not None:  # single draws would meet the same device error
                        raise
                    warnings.warn(
                        f"log weights: this program does not run inside an outer plate ({error}); drawing one by one "
                        "instead, which is slower. Index from the right, as z[..., 0], or pass vectorize=False.",
                        stacklevel=4,
                    )
                    self.vectorize = False
            return _joined([draw(1, k) for k in range(num_samples)])

    def _draw(self, num_samples: int, noise: Noise | None = None, start: int = 0) -> T:
        """Return the terms of K draws.

        The first call is eager; later calls may use a compiled graph.
        """
        if self.captured is not None and self._compared and not torch.is_grad_enabled():
            found = self.captured(self, num_samples, noise, start)
            if found is not None:
                return found
        return self.eagerly(num_samples, noise, start)

    def _compare(self, together: T, alone: T) -> None:
        """Compare the terms of one draw with and without outer plate.

        A program that indexes from the left, as in ``z[:, 0]``, may run inside the outer plate without an error, but
        mix up draws and data. The log weights then differ, and the outer plate is refused.
        """
        for ours, single in zip(together, alone, strict=True):
            if not torch.allclose(ours[:1], single, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise ValueError("a draw has different log weights inside the plate")
        self._compared = True


def _joined(parts: Sequence[T]) -> T:
    """Concatenate the terms of single draws to terms of K draws."""
    arrays: list[Tensor] = [torch.cat(part) for part in zip(*parts, strict=True)]
    return type(parts[0])(*arrays)
