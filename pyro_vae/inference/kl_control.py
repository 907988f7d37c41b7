r"""What no weight on a site can do: floors, capacities and targets for the KL, as wrappers over an objective.

All of them are functions of the rate *averaged over the batch*,

.. math:: R_j = \tfrac1B \textstyle\sum_i KL(q(z_j | x_i) \,\|\, p(z_j)),

in closed form over ``mean-field``, from the draws over ``trace``; under an outer scale of each datum, the mean weighted by
it. The bound that they tell is the wrapped objective's: the true one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Independent
from pyro.infer.util import torch_item
from torch import Tensor

from pyro_vae.handlers import check_kl_scales, owner_of
from pyro_vae.inference.exchange import batch_mean
from pyro_vae.inference.layout import (
    Layout,
    Site,
    base_name,
    check_match,
    find_layout,
    is_auxiliary_loss,
    sample_sites,
    site_log_prob,
)
from pyro_vae.inference.objectives import (
    Terms,
    TraceELBO,
    TraceMeanFieldELBO,
    auxiliary_sites,
    check_count,
    check_number,
    closed_kl,
    site_kl,
)
from pyro_vae.inference.particles import Pair, data_scale
from pyro_vae.inference.path_gradient import common_beta

Program = Callable[..., Any]


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

    def bound(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The ELBO of each datum, shape ``(B,)``: that of the wrapped objective."""
        return self.objective.bound(model, guide, *args, **kwargs)

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """The loss with the true rate and distortion; see :class:`Terms`.

        Raises:
            ValueError: If a site has no reparameterized draws, units are asked for of a posterior that has none, or a weight of
                the KL is set where none is taken.
        """
        pairs = [Pair(*traces) for traces in self.objective._get_traces(model, guide, args, kwargs)]
        for pair in pairs:
            check_match(*pair)
            check_kl_scales(*pair)
        layout = find_layout(*pairs[0], self.plate)
        parts = [self._sums(pair, layout) for pair in pairs]
        scaled, scaled_rates, scale, distortion, rate, extra = (
            torch.stack(part).mean(0) for part in zip(*parts, strict=True)
        )
        beta = self._beta(pairs[0], layout)
        averaged = batch_mean(scaled_rates / scale, scale)
        loss = scaled + scale * beta * self.penalty(averaged) - extra
        return Terms(loss, distortion.detach(), rate.detach())

    def _sums(self, pair: Pair, layout: Layout) -> tuple[Tensor, ...]:
        """Sums over the batch: distortion and rates times the outer scale, that scale, distortion and rate without, extra."""
        distortion, rates = self._distortion(pair, layout), self._rates(pair, layout)
        scale = distortion.new_ones(layout.size) * data_scale(pair, layout)
        scaled = (scale * distortion).sum(), (scale[:, None] * rates).sum(0), scale.sum()
        return *scaled, distortion.sum(), rates.sum(), extra_terms(pair)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _beta(self, pair: Pair, layout: Layout) -> Any:
        if not self.takes_beta and any(site.get("kl_scales") for _, site in sample_sites(pair.guide)):
            raise ValueError(
                f"{self.name}: expected no weight of the KL beside it, since it sets the KL's part itself, got one; drop beta."
            )
        beta = common_beta(pair, layout, self.name)
        if isinstance(beta, Tensor) and beta.dim():
            raise ValueError(
                f"{self.name}: expected one weight of the KL for the whole batch, got one of shape {tuple(beta.shape)}."
            )
        return beta

    def _distortion(self, pair: Pair, layout: Layout) -> Tensor:
        """Distortion of each datum, shape ``(B,)``."""
        total: Any = 0.0
        for _, site in sample_sites(pair.model):
            if site["is_observed"] and not is_auxiliary_loss(site):
                total = total - layout.per_datum(site_log_prob(site)).mean(0)
        return total

    def _rates(self, pair: Pair, layout: Layout) -> Tensor:
        """Rates of each datum, shape ``(B, R)``: by unit, by site, or of all together (R = 1)."""
        for name, site in sample_sites(pair.guide):
            if not site["fn"].has_rsample and not is_auxiliary_loss(site):
                raise ValueError(
                    f"{self.name}: expected reparameterized draws at site {name!r}, got {type(site['fn']).__name__}; "
                    "a bent KL has no score-function term here."
                )
        auxiliary = auxiliary_sites(*pair)
        if self.per == "unit":
            if auxiliary:
                raise ValueError(
                    f"{self.name}: expected a guide whose sites are the model's, got the auxiliary site {auxiliary[0][0]!r}, "
                    "whose density is not known for single units; use per='site'."
                )
            return torch.cat([_unit_kl(*sites, self._analytic, layout) for sites in latent_sites(pair)], -1)
        rates = {name: self._site_rate(site, theirs, layout) for name, site, theirs in latent_sites(pair)}
        for name, site in auxiliary:
            owner = self._owner(name, rates)
            rates[owner] = rates[owner] + layout.per_datum(site_log_prob(site)).mean(0)
        by_site = torch.stack([*rates.values()], -1)
        return by_site.sum(-1, keepdim=True) if self.per == "all" else by_site

    def _site_rate(self, site: Site, guide_site: Site, layout: Layout) -> Tensor:
        kl = site_kl(site, guide_site) if self._analytic else site_log_prob(guide_site) - site_log_prob(site)
        return layout.per_datum(kl).mean(0)

    def _owner(self, name: str, rates: Mapping[str, Tensor]) -> str:
        """The site in whose rate the density of an auxiliary site of the guide belongs."""
        owner = owner_of(name)
        if owner in rates:
            return owner
        if self.per == "all" or len(rates) == 1:
            return next(iter(rates))
        raise ValueError(
            f"{self.name}: expected auxiliary sites of the guide named SITE_unconstrained, as Pyro's autoguides name them, got "
            f"{name!r}, of which it is not known in which site's rate it belongs; use a floor under the whole rate."
        )

    @property
    def _analytic(self) -> bool:
        return isinstance(self.objective, TraceMeanFieldELBO)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """What is minimized, nats, summed over the batch: no bound."""
        with torch.no_grad():
            return torch_item(self.terms(model, guide, *args, **kwargs).loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """What is minimized, as a 0-dim tensor."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """What is minimized, its gradient added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)


class FreeBits(KLControl):
    r"""A floor under the rate of each unit, or of each site: below it there is nothing to gain.

    .. math:: \text{distortion} + \beta \textstyle\sum_j \max(\lambda, R_j)

    Keeps units from being switched off early in training. Per unit only where posterior and prior have independent
    units. A common beta multiplies the floored rate.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: :math:`\lambda`, the floor, nats.
        per: ``"unit"`` or ``"site"``.

    References:
        Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016, eq. 15.
    """

    name = "free bits"
    takes_beta = True

    def __init__(self, objective: Any, nats: float, per: str = "unit") -> None:
        super().__init__(objective)
        _check_positive("free_bits", nats)
        if per not in ("unit", "site"):
            raise ValueError(f"free_bits_per: expected 'unit' or 'site', got {per!r}.")
        self.nats, self.per = nats, per

    def penalty(self, rates: Tensor) -> Tensor:
        """See :meth:`KLControl.penalty`."""
        return rates.clamp(min=self.nats).sum()


class MinimumRate(KLControl):
    r"""A floor under the whole rate.

    .. math:: \text{distortion} + \beta \max(R_{min}, R)

    Above the floor it is the ELBO; below it the KL costs nothing. Keeps a strong decoder from ignoring z.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: :math:`R_{min}`, nats per datum.

    References:
        Alemi et al., "Fixing a Broken ELBO", 2018, on rates as constraints.
    """

    name = "minimum rate"
    takes_beta = True

    def __init__(self, objective: Any, nats: float) -> None:
        super().__init__(objective)
        _check_positive("min_rate", nats)
        self.nats = nats

    def penalty(self, rates: Tensor) -> Tensor:
        """See :meth:`KLControl.penalty`."""
        return rates.clamp(min=self.nats).sum()

    def _final_penalty(self, rate: float) -> float:
        return max(rate, self.nats)


class Capacity(KLControl):
    r"""A rate held at a capacity that grows.

    .. math:: \text{distortion} + \gamma\, |R - C_t|, \qquad C_t = C \min(1, t / T)

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: C, nats per datum.
        steps: T, optimization steps until it is reached.
        weight: :math:`\gamma`.

    References:
        Burgess et al., "Understanding disentangling in beta-VAE", 2018, eq. 8.
    """

    name = "capacity"

    def __init__(self, objective: Any, nats: float, steps: int = 1, weight: float = 100.0) -> None:
        super().__init__(objective)
        _check_positive("capacity", nats)
        _check_positive("capacity_weight", weight)
        check_count("capacity", steps, 1, " step until it is reached")
        self.nats, self.steps, self.weight = nats, steps, weight
        self.taken = torch.zeros(())

    def penalty(self, rates: Tensor) -> Tensor:
        """See :meth:`KLControl.penalty`; each call with gradients is a step."""
        self.taken = self.taken.to(rates.device)
        capacity = self.nats * (self.taken / self.steps).clamp(max=1)
        if torch.is_grad_enabled():
            self.taken.add_(1)
        return self.weight * (rates.sum() - capacity).abs()

    def _final_penalty(self, rate: float) -> float:
        return self.weight * abs(rate - self.nats)

    @property
    def columns(self) -> dict[str, float]:
        """What a row of the history says besides: the capacity of the last step."""
        return {"capacity": self.nats * min(1.0, max(0.0, float(self.taken) - 1) / self.steps)}

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on exactly."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.taken.fill_(float(state["taken"]))


class TargetRate(KLControl):
    r"""A rate held at a target by a controller that moves beta.

    .. math:: \text{distortion} + \beta_t R, \quad
        \beta_t = \frac{K_p}{1 + e^{e_t}} - K_i \textstyle\sum_{s \le t} e_s + \beta_{min}, \quad e_t = R^* - R_t

    clipped to [beta_min, beta_max]; the sum stands still while it is clipped. No gradient passes through beta.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``.
        nats: :math:`R^*`, nats per datum.
        proportional: :math:`K_p`.
        integral: :math:`K_i`.
        beta_min: Smallest weight.
        beta_max: Largest weight.

    References:
        Shao et al., "ControlVAE: Controllable Variational Autoencoder", 2020, eq. 6-8 and algorithm 1.
    """

    name = "target rate"

    def __init__(
        self,
        objective: Any,
        nats: float,
        proportional: float = 0.01,
        integral: float = 0.001,
        beta_min: float = 0.0,
        beta_max: float = 100.0,
    ) -> None:
        super().__init__(objective)
        _check_positive("target_rate", nats)
        if not 0 <= beta_min < beta_max or not math.isfinite(beta_max):
            raise ValueError(f"beta_max: expected above beta_min, both at least 0, got {beta_min} and {beta_max}.")
        self.nats, self.proportional, self.integral = nats, proportional, integral
        self.beta_min, self.beta_max = beta_min, beta_max
        self.total = torch.zeros(())
        self.beta = torch.tensor(float(beta_min))

    def penalty(self, rates: Tensor) -> Tensor:
        """See :meth:`KLControl.penalty`; each call with gradients moves beta first."""
        rate = rates.sum()
        self.total, self.beta = self.total.to(rate), self.beta.to(rate)
        if torch.is_grad_enabled():
            self._control(rate.detach())
        return self.beta * rate

    def _final_penalty(self, rate: float) -> float:
        # An exact penalty: no weight that the controller takes is larger.
        return self.beta_max * abs(rate - self.nats)

    def _control(self, rate: Tensor) -> None:
        error = self.nats - rate
        total = self.total - self.integral * error
        wanted = self.proportional * torch.sigmoid(-error) + total + self.beta_min
        inside = (wanted >= self.beta_min) & (wanted <= self.beta_max)
        # In place: a captured step holds these very tensors.
        self.total.copy_(torch.where(inside, total, self.total))
        self.beta.copy_(wanted.clamp(self.beta_min, self.beta_max))

    @property
    def columns(self) -> dict[str, float]:
        """What a row of the history says: the weight of the last step."""
        return {"beta": float(self.beta)}

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on exactly."""
        return {"total": self.total, "beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.total.copy_(state["total"])
        self.beta.copy_(state["beta"])


def _check_positive(name: str, value: float) -> None:
    remark = "; leave it out for none"
    check_number(name, value, lambda v: math.isfinite(v) and v > 0, "a positive number of nats", remark)


def latent_sites(pair: Pair) -> Iterator[tuple[str, Site, Site]]:
    """Name, site of the model and site of the guide of each latent variable."""
    for name, site in sample_sites(pair.model):
        if not site["is_observed"] and not is_auxiliary_loss(site):
            yield name, site, pair.guide.nodes[name]


def extra_terms(pair: Pair) -> Tensor:
    """Sum of the sites that are training terms only, with their scales, 0-dim, nats."""
    total = torch.zeros(())
    for sign, trace in ((1.0, pair.model), (-1.0, pair.guide)):
        for _, site in sample_sites(trace):
            if is_auxiliary_loss(site):
                total = total + sign * site["log_prob_sum"]
    return total


def _unit_kl(name: str, site: Site, guide_site: Site, analytic: bool, layout: Layout) -> Tensor:
    """KL of each unit of a site for each datum, shape ``(B, units)``; mean over draws, sum over plates inside a datum."""
    q, p = (_units(name, s["fn"]) for s in (guide_site, site))
    kl = closed_kl(q, p) if analytic else None
    if kl is None:
        kl = q.log_prob(guide_site["value"]) - p.log_prob(guide_site["value"])
    batch = kl.shape[: kl.dim() - guide_site["fn"].event_dim]
    flat = kl.reshape(*batch, -1)
    if guide_site["mask"] is not None:
        flat = flat * torch.as_tensor(guide_site["mask"]).to(flat)[..., None]
    padded = flat.reshape((1,) * (layout.nesting + 1 - len(batch)) + flat.shape)
    data = padded.movedim(layout.dim - 1, 1)
    return data.reshape(*data.shape[:2], -1, flat.shape[-1]).sum(2).mean(0).expand(layout.size, -1)


def _units(name: str, distribution: Any) -> Any:
    """The units of a site as scalar distributions.

    Raises:
        ValueError: If they depend on each other.
    """
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    whole = distribution.event_dim == (distribution.reinterpreted_batch_ndims if base is not distribution else 0)
    if not whole or base.event_shape:
        raise ValueError(
            f"free bits: expected independent units at site {name!r}, got {type(base).__name__}, whose units depend on each "
            "other; use per='site'."
        )
    if base_name(base) == "Delta":
        raise ValueError(
            f"free bits: expected a density at site {name!r}, got a Delta, which has none; use a guide with a scale."
        )
    return base
