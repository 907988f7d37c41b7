"""Base class of the KL controls."""

from __future__ import annotations

from typing import ClassVar

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.kl.rates import distortion_of, extra_terms, rates_of
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.objectives.mean_field import TraceMeanFieldELBO
from pyro_vae.inference.objectives.particles import common_beta, data_scale
from pyro_vae.inference.objectives.trace import TraceELBO
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.data_plate import DataPlate, find_data_plate
from pyro_vae.inference.program.sites import sample_sites
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program
from pyro_vae.parallel.shared_batch import batch_mean


class KLControl(pyro.infer.ELBO):
    r"""An objective that penalizes a function of the rate, not the KL.

    .. math:: \text{distortion} + \beta\, f(R)

    R is the rate, and :math:`\beta` is the KL weight. A subclass defines f in :meth:`penalty`. The control changes
    neither ``bound`` nor the reported rate and distortion.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``. The first estimates the KL from draws, the second uses
            closed forms. If several plates enclose every site, ``objective.plate`` names the data plate.

    Raises:
        TypeError: If ``objective`` has another type.
    """

    name: ClassVar[str] = ""
    #: Number of rates: one for each ``"unit"``, one for each ``"site"``, or one for ``"all"`` latent variables
    #: together.
    per: str = "all"
    #: True if a KL weight multiplies f.
    takes_beta: ClassVar[bool] = False
    #: True if the loss is a function of batch means, not a sum over data.
    across_batch: ClassVar[bool] = True

    def __init__(self, objective: ELBO) -> None:
        if type(objective) not in (TraceELBO, TraceMeanFieldELBO):
            raise TypeError(
                f"{self.name}: expected elbo('trace') or elbo('mean-field'), which have a KL for each site, got "
                f"{type(objective).__name__}; choose trace or mean-field."
            )
        super().__init__(
            num_particles=objective.num_particles,
            max_plate_nesting=objective.max_plate_nesting,
            vectorize_particles=objective.vectorize_particles,
            retain_graph=objective.retain_graph,
        )
        self.objective, self.plate = objective, objective.plate

    def penalty(self, rates: Tensor) -> Tensor:
        """Return f, the penalty for a batch with the given rates.

        Args:
            rates: Rates averaged over the batch, nats. Shape ``(units,)``, ``(sites,)`` or ``(1,)``, depending on
                ``per``.

        Returns:
            The penalty, 0-dim, nats per datum.
        """
        raise NotImplementedError

    def selection(self, distortion: float, rate: float, beta: float) -> float:
        """Return the score that selects the best epoch, higher is better.

        The score is minus the validation loss, nats per datum, computed with the final values of all schedules.

        Args:
            distortion: Distortion of the validation data, nats per datum.
            rate: Rate of the validation data, nats per datum.
            beta: The final KL weight.
        """
        return -distortion - beta * self._final_penalty(rate)

    def _final_penalty(self, rate: float) -> float:
        """Return f of a rate when all schedules have ended.

        In this base class, f is the rate itself.
        """
        return rate

    def bound(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """Return the ELBO of each datum, shape ``(B,)``, nats."""
        return self.objective.bound(model, guide, *args, **kwargs)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """Return the loss, and the true rate and distortion; see :class:`Terms`.

        Raises:
            ValueError: If a latent site has no reparameterized draws; if ``per`` is ``"unit"`` and the units of the
                posterior depend on each other; or if a KL weight is set although ``takes_beta`` is False.
        """
        pairs = [Pair(*traces) for traces in self.objective._get_traces(model, guide, args, kwargs)]
        for pair in pairs:
            check_match(*pair)
            check_kl_scales(*pair)
        data_plate = find_data_plate(*pairs[0], self.plate)
        parts = [self._sums(pair, data_plate) for pair in pairs]
        scaled, scaled_rates, scale, distortion, rate, extra = (
            torch.stack(part).mean(0) for part in zip(*parts, strict=True)
        )
        beta = self._beta(pairs[0], data_plate)
        averaged = batch_mean(scaled_rates / scale, scale)
        loss = scaled + scale * beta * self.penalty(averaged) - extra
        return Terms(loss, distortion.detach(), rate.detach())

    def _sums(self, pair: Pair, data_plate: DataPlate) -> tuple[Tensor, ...]:
        """Return six sums over the data of the batch.

        The summands are, in order: scale * distortion, scale * rates, scale, distortion, rate, auxiliary losses. The
        scale is the scale of the data plate.
        """
        distortion, rates = self._distortion(pair, data_plate), self._rates(pair, data_plate)
        scale = distortion.new_ones(data_plate.size) * data_scale(pair, data_plate)
        scaled = (scale * distortion).sum(), (scale[:, None] * rates).sum(0), scale.sum()
        return *scaled, distortion.sum(), rates.sum(), extra_terms(pair)

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _beta(self, pair: Pair, data_plate: DataPlate) -> float | Tensor:
        if not self.takes_beta and any(site.get("kl_scales") for _, site in sample_sites(pair.guide)):
            raise ValueError(
                f"{self.name}: cannot be combined with beta, since this control weights the KL itself; remove beta."
            )
        beta = common_beta(pair, data_plate, self.name)
        if isinstance(beta, Tensor) and beta.dim():
            raise ValueError(
                f"{self.name}: expected one KL weight for the whole batch, got KL weights of shape {tuple(beta.shape)}; pass a "
                "number."
            )
        return beta

    def _distortion(self, pair: Pair, data_plate: DataPlate) -> Tensor:
        return distortion_of(pair, data_plate)

    def _rates(self, pair: Pair, data_plate: DataPlate) -> Tensor:
        analytic = isinstance(self.objective, TraceMeanFieldELBO)
        return rates_of(pair, data_plate, self.per, analytic, self.name)

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Return the loss summed over the batch, nats; not a bound."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """Return the loss summed over the batch, nats, as a 0-dim tensor."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Return the loss; add its gradient to ``grad`` of each parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)
