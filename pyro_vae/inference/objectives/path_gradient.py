"""Path-gradient objectives: STL, and doubly reparameterized gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Unpack

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.errors import check_number
from pyro_vae.handlers import Beta
from pyro_vae.inference.objectives.particles import Particles, common_beta
from pyro_vae.inference.objectives.weighted import Options, WeightedELBO, log_mean_exp
from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.parameters import frozen, parameters_used
from pyro_vae.inference.program.sites import Site, sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program, with_values


class Gate:
    """Identity function that multiplies the gradient by a factor.

    Attributes:
        factor: Factor for each draw and datum, shape ``(K, B)``. It must be set before the backward pass.
    """

    def __init__(self, data_plate: DataPlate) -> None:
        self.data_plate = data_plate
        self.factor: Tensor | None = None

    def __call__(self, _name: str, site: Site) -> Tensor:
        """Return the site's value as a tensor whose gradient is multiplied."""
        value = site["value"]
        if not value.requires_grad:
            return value
        event_dim = site["fn"].event_dim
        passed = value.view_as(value)
        passed.register_hook(lambda grad: grad * self._spread(value.dim() - event_dim, event_dim))
        return passed

    def _spread(self, batch_dim: int, event_dim: int) -> Tensor:
        """Reshape ``factor`` so that it broadcasts against a site's value."""
        assert self.factor is not None
        data_plate = self.data_plate
        shape = [1] * data_plate.nesting
        shape[data_plate.dim] = data_plate.size
        spread = self.factor.reshape(-1, *shape)
        spread = spread.reshape(spread.shape + (1,) * event_dim)
        while spread.dim() > batch_dim + event_dim:  # a trace without a particle axis has fewer dimensions
            spread = spread.squeeze(0)
        return spread


class _PathGradient(WeightedELBO):
    """Base class: the encoder's gradient flows through the draws only.

    The score of q, the gradient of log q(z|x) at fixed z, is left out. A subclass chooses the weight of each draw in
    the gradient.
    """

    def _surrogate(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Particles, Tensor]:
        gates: list[Gate] = []
        parts: list[Particles] = []
        for pair, gate in self._gated(model, guide, args, kwargs):
            parts.append(self._reduce(pair))
            gates.append(gate)
        particles = self._cat(parts)
        weights, factors = self._weights(particles.log_w.detach())
        start = 0
        for gate, part in zip(gates, parts, strict=True):
            gate.factor = factors[start : start + len(part.log_w)]
            start += len(part.log_w)
        return particles, (weights * particles.log_w).sum(0)

    def _gated(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Iterator[tuple[Pair, Gate]]:
        def gated(model: Program, guide: Program) -> tuple[Pair, tuple[Pair, Gate]]:
            with parameters_used() as params:
                drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            gate = Gate(self._data_plate.at(drawn))
            values = with_values(drawn, gate)
            model_trace = poutine.trace(poutine.replay(model, trace=values)).get_trace(*args, **kwargs)
            with frozen(params):
                scored = poutine.trace(poutine.replay(guide, trace=values)).get_trace(*args, **kwargs)
            if is_validation_enabled():
                self._check_repeatable(drawn, scored)
            return Pair(model_trace, drawn), (self._scored(model_trace, scored), gate)

        return self._drawn(gated, model, guide)

    def _check_repeatable(self, drawn: Trace, scored: Trace) -> None:
        for name, site in sample_sites(drawn):
            ours = site["fn"].log_prob(site["value"])
            theirs = scored.nodes[name]["fn"].log_prob(site["value"])
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise ValueError(
                    f"{self.name}: two runs of the guide give the same draw different densities at site {name!r}; remove "
                    "random numbers outside sample sites (dropout?), or use elbo('iwae')."
                )

    def _weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weight of each draw in the gradient, and its factor.

        Args:
            log_w: Tempered log weights, shape ``(K, B)``, nats, detached.

        Returns:
            Two tensors of shape ``(K, B)``: the weights of the draws, and factors. In the encoder's path gradient, the
            weight of each draw is multiplied by its factor.
        """
        raise NotImplementedError


class DReG(_PathGradient):
    r"""The importance-weighted bound with doubly reparameterized gradients.

    .. math:: \nabla_\phi = E\Big[\textstyle\sum_k \big((1 - c) \tilde w_k + c \tilde w_k^2\big)
        \frac{\partial a_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}\Big],
        \quad \tilde w_k \propto e^{(1-\alpha) a_k}, \quad c = \beta (1 - \alpha)

    Here :math:`a_k` is the tempered log weight of draw k, and beta the KL weight. Use this objective with many draws:
    the signal-to-noise ratio of the encoder's gradient rises with K, while that of ``IWAE`` falls with K. The bound is
    that of ``Renyi``, and at alpha = 0 that of ``IWAE``. It is a lower bound if alpha >= 0. The gradient has the same
    expectation as that of ``Renyi``, since the score of q is integrated out (docs/objectives.md derives c). At beta = 1
    and alpha = 0, the factor in the formula is :math:`\tilde w_k^2`, as in the paper. The decoder's gradient is the
    gradient of the bound. A training step evaluates the guide twice. All latent sites must be reparameterized and have
    the same KL weight.

    Args:
        alpha: The order of the bound, a finite number.
        **options: See :class:`WeightedELBO`; ``num_particles`` is K.

    References:
        Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2019, eq. 8.
    """

    name = "dreg"

    def __init__(self, alpha: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        check_number("alpha", alpha, math.isfinite, "a finite number", "; 0 gives the bound of iwae")
        self.alpha = alpha
        self._beta: Beta = 1.0

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_mean_exp(log_w, self.alpha)

    def _scored(self, model_trace: Trace, guide_trace: Trace) -> Pair:
        pair = super()._scored(model_trace, guide_trace)
        self._beta = common_beta(pair, self._data_plate.at(model_trace))
        return pair

    def _weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        normalized = ((1 - self.alpha) * log_w).softmax(0)
        c = self._beta * (1 - self.alpha)
        return normalized, (1 - c) + c * normalized


class STL(_PathGradient):
    r"""The ELBO, with a gradient that leaves out the score of q.

    .. math:: \mathcal L(x) = E\Big[\tfrac1K \textstyle\sum_k \log w_k\Big], \quad
        \nabla_\phi = \tfrac1K \sum_k \frac{\partial a_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}

    This is the estimator "sticking the landing"; :math:`a_k` is the tempered log weight of draw k. If q is the exact
    posterior, the encoder's gradient is 0 for every draw, for every number of latent layers. The bound is the ELBO, a
    lower bound, estimated by the mean over K draws. The gradient is unbiased, since the score has expectation 0. A
    training step evaluates the guide twice. All latent sites must be reparameterized. With ``scale_kl_pair``, the loss
    is exactly distortion + beta * rate.

    Args:
        *args: See :class:`WeightedELBO`; ``num_particles`` is K.
        **options: See :class:`WeightedELBO`.

    References:
        Roeder, Wu, Duvenaud, "Sticking the Landing", 2017, eq. 7.
    """

    name = "stl"

    def value(self, log_w: Tensor) -> Tensor:
        """See :meth:`WeightedELBO.value`."""
        return log_w.mean(0)

    def _weights(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(log_w, 1 / len(log_w)), torch.ones_like(log_w)
