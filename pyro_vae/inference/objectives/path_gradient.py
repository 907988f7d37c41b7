"""Path gradients: sticking the landing and the doubly reparameterized gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Unpack

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.errors import check_number
from pyro_vae.inference.objectives.particles import Gate, Particles, common_beta
from pyro_vae.inference.objectives.weighted import Options, WeightedELBO, log_mean_exp
from pyro_vae.inference.program.parameters import frozen, parameters_used
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, with_values


class _PathGradient(WeightedELBO):
    """Objectives whose encoder gradient leaves the score of q out: a path of draws alone, with weights of its own."""

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        gates: list[Gate] = []
        found = []
        for pair, gate in self._gated(model, guide, args, kwargs):
            found.append(self._reduce(pair))
            gates.append(gate)
        particles = self._cat(iter(found))
        weights, factors = self._weights(particles.log_w.detach(), found)
        start = 0
        for gate, part in zip(gates, found, strict=True):
            gate.factor = factors[start : start + len(part.log_w)]
            start += len(part.log_w)
        return particles, (weights * particles.log_w).sum(0)

    def _gated(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Iterator[tuple[Pair, Gate]]:
        def gated(model: Program, guide: Program) -> tuple[Pair, tuple[Pair, Gate]]:
            random_state = torch.get_rng_state() if is_validation_enabled() else None
            with parameters_used() as params:
                drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            gate = Gate(self._layout_.at(drawn))
            values = with_values(drawn, gate)
            model_trace = poutine.trace(poutine.replay(model, trace=values)).get_trace(*args, **kwargs)
            with frozen(params):
                scored = poutine.trace(poutine.replay(guide, trace=values)).get_trace(*args, **kwargs)
            if random_state is not None:
                self._check_repeatable(drawn, scored)
            return Pair(model_trace, drawn), (self._scored(model_trace, scored), gate)

        return self._drawn(gated, model, guide)

    def _check_repeatable(self, drawn: Any, scored: Any) -> None:
        for name, site in sample_sites(drawn):
            ours = site["fn"].log_prob(site["value"])
            theirs = scored.nodes[name]["fn"].log_prob(site["value"])
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise ValueError(
                    f"{self.name}: expected a guide that gives one density for one draw, got another at site {name!r} when "
                    "it was run again; it draws numbers besides its sites (dropout?), so take that out or use elbo('iwae')."
                )

    def _weights(self, log_w: Tensor, found: list[Particles]) -> tuple[Tensor, Tensor]:
        """Weights of the draws for the decoder's gradient, shape ``(K, B)``, and what multiplies them on the path."""
        raise NotImplementedError


class DReG(_PathGradient):
    r"""The bound of ``iwae`` (or ``renyi``) with its doubly reparameterized encoder gradient.

    .. math:: \nabla_\phi = E\Big[\textstyle\sum_k \big((1 - c) \tilde w_k + c \tilde w_k^2\big)
        \frac{\partial a_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}\Big],
        \quad \tilde w_k \propto e^{(1-\alpha) a_k}, \quad c = \beta (1 - \alpha)

    The same expectation as the gradient of :class:`Renyi`, with a signal-to-noise ratio that rises with K: the score
    of q has been integrated out (docs/objectives.md derives c). At beta = 1 and alpha = 0 it is Tucker's
    :math:`\tilde w^2`. The decoder's gradient is that of the bound. The guide is evaluated twice. All sites must have
    reparameterized draws, and all weights of the KL must be equal.

    Args:
        alpha: The order of the bound.
        **options: Of :class:`WeightedELBO`.

    References:
        Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2019, eq. 8.
    """

    name = "dreg"

    def __init__(self, alpha: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_number("alpha", alpha, math.isfinite, "a finite number", "; 0 gives the bound of iwae")
        self.alpha = alpha
        self._beta: Any = 1.0

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w, self.alpha)

    def _scored(self, model_trace: Any, guide_trace: Any) -> Pair:
        pair = super()._scored(model_trace, guide_trace)
        self._beta = common_beta(pair, self._layout_.at(model_trace))
        return pair

    def _weights(self, log_w: Tensor, found: list[Particles]) -> tuple[Tensor, Tensor]:
        normalized = ((1 - self.alpha) * log_w).softmax(0)
        c = self._beta * (1 - self.alpha)
        return normalized, (1 - c) + c * normalized


class STL(_PathGradient):
    r"""The ELBO, mean of K draws, with the score of q left out of its gradient: sticking the landing.

    .. math:: \nabla_\phi = \tfrac1K \textstyle\sum_k \frac{\partial a_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}

    Unbiased for the gradient of the ELBO, since the score has expectation 0, and identically zero at the exact
    posterior, with any number of latent layers. The guide is evaluated twice. All sites must have reparameterized draws.
    Under ``scale_kl_pair`` the loss is exactly distortion + beta x rate.

    References:
        Roeder, Wu, Duvenaud, "Sticking the Landing", 2017, eq. 7.
    """

    name = "stl"

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_w.mean(0)

    def _weights(self, log_w: Tensor, found: list[Particles]) -> tuple[Tensor, Tensor]:
        return torch.full_like(log_w, 1 / len(log_w)), torch.ones_like(log_w)
