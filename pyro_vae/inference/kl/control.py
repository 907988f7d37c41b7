"""A loss with a function of the rates in the place of the KL, around an objective whose bound stays the true one."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import torch
from pyro.infer.util import torch_item
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
    """What the wrappers share.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``, which decides how the KL is evaluated, and whose ``plate``
            names the data plate where several enclose every site.

    Raises:
        TypeError: If it is another objective.
    """

    name: ClassVar[str] = ""
    #: Whether the latent vector is taken apart into units, sites, or not at all.
    per: str = "all"
    takes_beta: ClassVar[bool] = False
    #: The loss is no sum over the data, since it has a function of their mean in it.
    across_batch: ClassVar[bool] = True

    def __init__(self, objective: Any) -> None:
        if type(objective) not in (TraceELBO, TraceMeanFieldELBO):
            raise TypeError(
                f"{self.name}: expected elbo('trace') or elbo('mean-field'), which have a KL for each site, got "
                f"{type(objective).__name__}; wrap one of these."
            )
        super().__init__(
            num_particles=objective.num_particles,
            max_plate_nesting=objective.max_plate_nesting,
            vectorize_particles=objective.vectorize_particles,
            retain_graph=objective.retain_graph,
        )
        self.objective, self.plate = objective, objective.plate

    def penalty(self, rates: Tensor) -> Tensor:
        """What stands in the place of the rate, for one datum.

        Args:
            rates: Rates averaged over the batch, nats: shape ``(units,)``, ``(sites,)`` or ``(1,)``.

        Returns:
            0-dim, nats.
        """
        raise NotImplementedError

    def selection(self, distortion: float, rate: float, beta: float) -> float:
        """What a model is chosen by on validation data, in the end of all schedules, higher is better.

        Args:
            distortion: Of the validation data, nats per datum.
            rate: Likewise.
            beta: The weight of the KL in the end.
        """
        return -distortion - beta * self._final_penalty(rate)

    def _final_penalty(self, rate: float) -> float:
        """What stands in the place of the rate when a model is chosen; here the rate itself."""
        return rate

    def bound(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """The ELBO of each datum, shape ``(B,)``: that of the wrapped objective."""
        return self.objective.bound(model, guide, *args, **kwargs)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """The loss with the true rate and distortion; see :class:`Terms`.

        Raises:
            ValueError: If a site has no reparameterized draws, units are asked for of a posterior that has none, or a weight of
                the KL is set where none is taken.
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
        """Sums over the batch: distortion and rates times the outer scale, that scale, distortion and rate without, extra."""
        distortion, rates = self._distortion(pair, data_plate), self._rates(pair, data_plate)
        scale = distortion.new_ones(data_plate.size) * data_scale(pair, data_plate)
        scaled = (scale * distortion).sum(), (scale[:, None] * rates).sum(0), scale.sum()
        return *scaled, distortion.sum(), rates.sum(), extra_terms(pair)

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _beta(self, pair: Pair, data_plate: DataPlate) -> Any:
        if not self.takes_beta and any(site.get("kl_scales") for _, site in sample_sites(pair.guide)):
            raise ValueError(
                f"{self.name}: expected no weight of the KL beside it, since it sets the KL's part itself, got one; drop beta."
            )
        beta = common_beta(pair, data_plate, self.name)
        if isinstance(beta, Tensor) and beta.dim():
            raise ValueError(
                f"{self.name}: expected one weight of the KL for the whole batch, got one of shape {tuple(beta.shape)}."
            )
        return beta

    def _distortion(self, pair: Pair, data_plate: DataPlate) -> Tensor:
        return distortion_of(pair, data_plate)

    def _rates(self, pair: Pair, data_plate: DataPlate) -> Tensor:
        analytic = isinstance(self.objective, TraceMeanFieldELBO)
        return rates_of(pair, data_plate, self.per, analytic, self.name)

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """What is minimized, nats, summed over the batch: no bound."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """What is minimized, as a 0-dim tensor."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """What is minimized, its gradient added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)
