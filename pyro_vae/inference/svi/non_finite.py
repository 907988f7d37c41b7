"""Losses that are not finite: the error, the site to blame, and steps of which it is not known yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs
from pyro_vae.system.randomness import device_state, set_device_state

#: Steps whose arguments are held until someone asks whether their losses were finite: so many of them or their bytes.
HELD_STEPS, HELD_BYTES = 100, 64 << 20


class NonFiniteLossError(ArithmeticError):
    """The loss is not finite, and the step was not taken.

    Attributes:
        step: Which step, counted from 0.
        site: Name of the first site whose log-probability is not finite, or None.
    """

    def __init__(self, loss: Any, step: int, site: str | None) -> None:
        self.loss, self.step, self.site = loss, step, site
        where = f"site {site!r} has a log-probability that is not finite" if site else "no single site is to blame"
        super().__init__(
            f"step {step}: expected a finite loss, got {loss}: {where}; the step was not taken. Try a smaller learning rate "
            "or clip_norm."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.loss, self.step, self.site)


def nonfinite_site(model: Callable[..., Any], guide: Callable[..., Any], args: Args, kwargs: Kwargs) -> str | None:
    """Name of the first site, guide first, whose log-probability is not finite; nothing is altered.

    Sites are drawn in the order in which the objectives draw, so the same generator state gives the same values.
    """
    with torch.no_grad(), unaltered(Watch(model, guide)), poutine.block(), pyro.validation_enabled(False):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        for trace in (guide_trace, model_trace):
            for name, site in sample_sites(trace):
                log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                if not bool(torch.isfinite(log_prob).all()):
                    return name
    return None


class Noise(NamedTuple):
    """States of the generators."""

    host: Tensor
    device: Tensor | None

    @classmethod
    def of(cls, device: torch.device | None) -> Noise:
        """As they are now."""
        return cls(torch.get_rng_state(), None if device is None else device_state(device))

    def restore(self, device: torch.device) -> None:
        """Make them so."""
        torch.set_rng_state(self.host)
        set_device_state(device, self.device)


class Pending(NamedTuple):
    """A step taken of which it is not known yet whether its loss was finite."""

    args: Any
    kwargs: Any
    noise: Noise
    broken: Tensor
    loss: Tensor


class PendingSteps:
    """Steps taken whose losses stay on the device until someone asks."""

    def __init__(self) -> None:
        self._steps: list[Pending] = []
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Pending, tensors: list[Tensor]) -> None:
        """Hold a step; ``tensors`` are those among its arguments."""
        self._steps.append(step)
        self._held_bytes += sum(t.numel() * t.element_size() for t in tensors)

    @property
    def many(self) -> bool:
        """Whether it is time to ask, so that what is held does not grow."""
        return len(self._steps) >= HELD_STEPS or self._held_bytes > HELD_BYTES

    def first_broken(self) -> tuple[int, Pending] | None:
        """Wait, and hold nothing any more: how many steps the last good one is back, and the step after it."""
        steps, self._steps, self._held_bytes = self._steps, [], 0
        if not steps or not bool(torch.stack([s.broken for s in steps]).any()):
            return None
        first = next(i for i, s in enumerate(steps) if s.broken)
        return len(steps) - first, steps[first]
