"""Non-finite losses: the error, the responsible site, the steps to check."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Program
from pyro_vae.system.randomness import device_state, set_device_state

#: Largest number of training steps that may wait for a check of their losses, and largest size of their arguments in
#: bytes.
HELD_STEPS, HELD_BYTES = 100, 64 << 20


class NonFiniteLossError(ArithmeticError):
    """The loss is not finite, so no training step was taken.

    Attributes:
        loss: The loss, a tuple of losses, or a text that describes a non-finite gradient.
        step: Number of the training step, counted from 0.
        site: Name of the first site with a non-finite log-probability, or None.
    """

    def __init__(self, loss: object, step: int, site: str | None) -> None:
        self.loss, self.step, self.site = loss, step, site
        where = f"site {site!r} has a log-probability that is not finite" if site else "no single site is to blame"
        super().__init__(
            f"step {step}: expected a finite loss, got {loss}: {where}; the step was not taken. Try a smaller learning rate "
            "or clip_norm."
        )

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[object, int, str | None]]:
        return type(self), (self.loss, self.step, self.site)


def nonfinite_site(model: Program, guide: Program, args: Args, kwargs: Kwargs) -> str | None:
    """Return the first site with a non-finite log-probability; change no state.

    Guide sites come before model sites. Sites are drawn in the same order as in the objectives, so the same state of the
    random generators gives the same values.
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


class Generators(NamedTuple):
    """States of the random generators of the host and of the device."""

    host: Tensor
    device: Tensor | None

    @classmethod
    def of(cls, device: torch.device | None) -> Generators:
        """Return the current states of the random generators."""
        return cls(torch.get_rng_state(), None if device is None else device_state(device))

    def restore(self, device: torch.device) -> None:
        """Set the random generators to these states."""
        torch.set_rng_state(self.host)
        set_device_state(device, self.device)


class Pending(NamedTuple):
    """A training step, already taken, whose loss is not checked yet."""

    args: Args
    kwargs: Kwargs
    before: Generators
    broken: Tensor
    loss: Tensor


class PendingSteps:
    """Training steps whose losses stay on the device until they are checked."""

    def __init__(self) -> None:
        self._steps: list[Pending] = []
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Pending, tensors: list[Tensor]) -> None:
        """Add a step; ``tensors`` are the tensors among its arguments."""
        self._steps.append(step)
        self._held_bytes += sum(t.numel() * t.element_size() for t in tensors)

    @property
    def many(self) -> bool:
        """True if enough steps wait that their losses should be checked."""
        return len(self._steps) >= HELD_STEPS or self._held_bytes > HELD_BYTES

    def first_broken(self) -> tuple[int, Pending] | None:
        """Wait for the losses of all steps; return the first broken step.

        A step is broken if its loss is not finite. All steps are removed from this object.

        Returns:
            The number of lost steps (the first broken step and all later steps), and the first broken step; None if no
            step is broken.
        """
        steps, self._steps, self._held_bytes = self._steps, [], 0
        if not steps or not bool(torch.stack([s.broken for s in steps]).any()):
            return None
        first = next(i for i, s in enumerate(steps) if s.broken)
        return len(steps) - first, steps[first]
