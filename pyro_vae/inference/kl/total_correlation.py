r"""Total-correlation objective: splits the rate into three weighted parts.

.. math:: \underbrace{E_n\, KL(q(z|x_n) \| p(z))}_{\text{rate}} = I(x; z)
    + \underbrace{KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)}_{\text{total correlation}}
    + \underbrace{KL\big(\textstyle\prod_j q(z_j) \| p(z)\big)}_{\text{of the units}}

:math:`q(z) = \tfrac1N \sum_n q(z|x_n)` depends on all data. The third part is called the units' KL. A training step
estimates q(z) from the batch; see :func:`batch_weights`. ``evidence.aggregate_posterior`` computes the three parts
exactly for a trained model.
"""

from __future__ import annotations

import math

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_vae.errors import check_count, check_number
from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.kl.control import KLControl
from pyro_vae.inference.kl.rates import extra_terms, latent_sites
from pyro_vae.inference.objectives.bound import Terms
from pyro_vae.inference.objectives.mean_field import auxiliary_sites
from pyro_vae.inference.objectives.particles import common_beta, data_scale
from pyro_vae.inference.program.checks import check_match
from pyro_vae.inference.program.data_plate import DataPlate, find_data_plate
from pyro_vae.inference.program.sites import Site, base_name, plates_of, site_log_prob
from pyro_vae.inference.program.traces import Pair, Program
from pyro_vae.lookup import lookup


def batch_weights(estimator: str, batch_size: int, num_data: int) -> Tensor:
    r"""Return weights W to estimate q(z) from the codes of a batch.

    .. math:: \hat q(z_i) = \textstyle\sum_j W_{ij}\, q(z_i | x_j), \qquad z_i \sim q(z | x_i)

    The code of datum j is :math:`q(z | x_j)`. The draw :math:`z_i` comes from datum i, and its own code is that of
    datum i. N is the size of the training data, B the size of the batch, and M = B - 1. The estimators differ in W:

    - ``"weighted"``: every code has weight 1 / (N B). The weights sum to 1/N, so they estimate q(z) up to a factor. The
      factor has no gradient, and :class:`TotalCorrelation` leaves it out. A draw's own code has the same weight as any other
      code, so the estimate of I(x; z) cannot exceed log B.
    - ``"stratified"``: a draw's own code has weight 1/N, the next code in the batch (N - M) / (N M), each other code
      1/M. On average over batches of distinct data that contain datum i, :math:`\hat q(z_i) = q(z_i)`.
    - ``"even"``: a draw's own code has weight 1/N, each other code (N - 1) / (N M). This is the mean of the
      ``"stratified"`` weights over all orders of the batch. The estimate has the same expectation, a smaller variance,
      and a logarithm with a smaller bias. At B = N the estimate equals q(z).

    The logarithm of an unbiased estimate is biased low. In a batch of one datum, the weight is 1 (``"weighted"``: 1/N).

    Args:
        estimator: One of the names above.
        batch_size: B, number of data in the batch.
        num_data: N, size of the training data, at least B.

    Returns:
        Weights W, shape ``(B, B)``, float64. Row i is for draws from the code of datum i.

    Raises:
        ValueError: If ``estimator`` is unknown, ``batch_size`` is below 1, or ``num_data`` is below ``batch_size``.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, section 4.1
        and appendix C. The authors' program fills two columns of W instead of the two diagonals of the definition.
    """
    fill = lookup("estimator", estimator, ESTIMATORS)
    check_count("batch_size", batch_size)
    check_count("num_data", num_data)
    if num_data < batch_size:
        raise ValueError(
            f"num_data: expected at least the batch size {batch_size}, got {num_data}; pass the size of the training data."
        )
    return fill(batch_size, num_data)


def _weighted(size: int, total: int) -> Tensor:
    return torch.full((size, size), 1 / (total * size), dtype=torch.float64)


def _stratified(size: int, total: int) -> Tensor:
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    others = size - 1
    weights = torch.full((size, size), 1 / others, dtype=torch.float64).fill_diagonal_(1 / total)
    rows = torch.arange(size)
    weights[rows, (rows + 1) % size] = (total - others) / (total * others)
    return weights


def _even(size: int, total: int) -> Tensor:
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    weights = torch.full((size, size), (total - 1) / (total * (size - 1)), dtype=torch.float64)
    return weights.fill_diagonal_(1 / total)


#: Threshold in nats. An estimated total correlation below it is not explained by noise alone.
BELOW = -0.1

#: Estimators of q(z) by name: functions of B and N that return the weights, shape ``(B, B)``.
ESTIMATORS = {"even": _even, "stratified": _stratified, "weighted": _weighted}


class TotalCorrelation(KLControl):
    r"""beta-TC: an objective that weights three parts of the rate.

    .. math:: \text{distortion} + \alpha\, I(x; z) + \beta\, KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)
        + \gamma\, KL\big(\textstyle\prod_j q(z_j) \| p(z)\big)

    The parts are I(x; z), the total correlation and the units' KL. For each part, the loss of ``objective`` is
    increased by (weight - 1) times the part. With all weights 1 it is exactly the negative ELBO, with the closed-form
    KL of ``mean-field``. A weight on the total correlation alone favours independent units and does not penalize the
    information that z holds about x. The parts are estimated from the codes q(z|x) of the batch, and the gradient
    passes through all codes. For every draw and batch, the three estimates sum to the rate. If a weight is not 1, the
    loss is not a bound. ``bound`` and the reported rate and distortion do not depend on the weights.

    If ``scale_kl_pair`` gives all sites one KL weight, this KL weight multiplies all three parts. The best epoch is the
    epoch with the largest validation ELBO (computed with that KL weight). The total correlation does not affect this
    choice, since it is defined for a set of data, not for a datum.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``. Each draw is scored under the codes of all data in the
            batch: K x B x B x Z densities.
        weight: :math:`\beta`, weight of the total correlation.
        information_weight: :math:`\alpha`, weight of I(x; z).
        unit_weight: :math:`\gamma`, weight of the units' KL.
        estimator: Weights of the codes in a batch, see :func:`batch_weights`. ``"even"`` and ``"stratified"`` need batches
            that contain neighbours of each code, with log B well above I(x; z). Without neighbours, they underestimate the
            joint density, and more strongly than the densities of the units. The penalty then falls below 0 and rewards
            dependent units (``fit`` warns). ``"weighted"`` errs the other way: the penalty also lowers I(x; z).
        num_data: N, the size of the training data. None: the full size of the data plate, which is B if the plate holds
            only the batch. If N = B, ``"even"`` weights all codes equally, as ``"weighted"`` does at any N.

    Raises:
        TypeError: If ``objective`` has another type, or a weight is not a number.
        ValueError: If a weight is negative, or ``estimator`` is unknown. When called: if N is below B; or unless there is
            exactly one latent site, in no plate but the data plate, with marginals in closed form.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, eq. 2 and 4.
    """

    name = "total correlation"
    takes_beta = True
    across_batch = False  # the loss is a sum over data: each data-parallel process compares the codes of its own rows

    def __init__(
        self,
        objective: ELBO,
        weight: float = 6.0,
        information_weight: float = 1.0,
        unit_weight: float = 1.0,
        estimator: str = "weighted",
        num_data: int | None = None,
    ) -> None:
        super().__init__(objective)
        weights = {"weight": weight, "information_weight": information_weight, "unit_weight": unit_weight}
        for name, value in weights.items():
            check_number(name, value, lambda v: math.isfinite(v) and v >= 0, "a finite number of at least 0")
        lookup("estimator", estimator, ESTIMATORS)
        if num_data is not None:
            check_count("num_data", num_data)
        self.weight, self.information_weight, self.unit_weight = weight, information_weight, unit_weight
        self.estimator, self.num_data = estimator, num_data

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """Return the loss, and the true rate and distortion; see :class:`Terms`.

        Raises:
            ValueError: For the reasons given in the docstring of the class.
        """
        pairs = [Pair(*traces) for traces in self.objective._get_traces(model, guide, args, kwargs)]
        for pair in pairs:
            check_match(*pair)
            check_kl_scales(*pair)
        data_plate = find_data_plate(*pairs[0], self.plate)
        parts = [self._particle(pair, data_plate) for pair in pairs]
        return Terms(*(torch.stack(part).mean(0) for part in zip(*parts, strict=True)))

    def epoch_warning(self, objective: float, elbo: float, batch_size: int) -> str | None:
        """Return a warning if the estimated total correlation is clearly below 0.

        Args:
            objective: Mean objective of the epoch, nats per datum.
            elbo: Mean ELBO of the epoch (- distortion - rate), nats per datum.
            batch_size: B, for the warning.

        Returns:
            The text of the warning, or None.
        """
        if self.weight <= 1 or (self.information_weight, self.unit_weight) != (1, 1):
            return None
        value = (elbo - objective) / (self.weight - 1)
        if value >= BELOW:
            return None
        return (
            f"{self.name}: expected at least 0, got {value:.2f} nats, so the penalty is a reward: a batch of {batch_size} "
            "holds too few neighbours of a code; use larger batches or estimator='weighted' (Python)."
        )

    def _particle(self, pair: Pair, data_plate: DataPlate) -> Terms:
        distortion, rate = self._distortion(pair, data_plate), self._rates(pair, data_plate)[:, 0]
        information, total_correlation, units = self._parts(pair, data_plate)
        kl = (
            rate
            + (self.information_weight - 1) * information
            + (self.weight - 1) * total_correlation
            + (self.unit_weight - 1) * units
        )
        weighted = data_scale(pair, data_plate) * (distortion + common_beta(pair, data_plate, self.name) * kl)
        return Terms(weighted.sum() - extra_terms(pair), distortion.sum().detach(), rate.sum().detach())

    def _parts(self, pair: Pair, data_plate: DataPlate) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate I(x; z), the total correlation and the units' KL.

        Each estimate has shape ``(B,)``, in nats, averaged over draws.
        """
        site, guide_site = self._only_site(pair, data_plate)
        joint, units = _scores(guide_site, data_plate)
        weights = batch_weights(self.estimator, data_plate.size, self._total(guide_site, data_plate))
        log_weights = (weights / weights.sum(1, keepdim=True)).log().to(joint)
        log_q = (joint + log_weights[:, None]).logsumexp(-1)  # (B, K)
        log_product = (units + log_weights[:, None, :, None]).logsumexp(-2).sum(-1)  # (B, K)
        given = joint.diagonal(dim1=0, dim2=2).T  # (B, K)
        prior = data_plate.per_datum(site_log_prob(site)).T  # (B, K)
        return (given - log_q).mean(1), (log_q - log_product).mean(1), (log_product - prior).mean(1)

    def _total(self, site: Site, data_plate: DataPlate) -> int:
        return plates_of(site)[data_plate.plate].full_size if self.num_data is None else self.num_data

    def _only_site(self, pair: Pair, data_plate: DataPlate) -> tuple[Site, Site]:
        """Return the only latent site: its model site and its guide site."""
        found = [*latent_sites(pair)]
        if len(found) != 1 or auxiliary_sites(*pair):
            names = sorted({n for n, _, _ in found} | {n for n, _ in auxiliary_sites(*pair)})
            raise ValueError(
                f"{self.name}: expected one latent site, in model and guide, got {len(names)}: {', '.join(names)}; join the "
                "sites into one vector."
            )
        ((name, model_site, site),) = found
        inside = [p for p in plates_of(site) if p != data_plate.plate]
        if inside or site["mask"] is not None or _marginals(site["fn"]) is None:
            what = (
                f"the plate {inside[0]!r}"
                if inside
                else "a mask"
                if site["mask"] is not None
                else base_name(site["fn"])
            )
            raise ValueError(
                f"{self.name}: expected a normal distribution or independent units at site {name!r}, with no mask and no plate "
                f"besides the data plate, got {what}; use a guide with known unit marginals."
            )
        return model_site, site


def _marginals(fn: Distribution) -> Distribution | None:
    """Return the marginal distribution of each unit; None without a closed form.

    The marginals are scalar distributions with batch shape ``(..., B, Z)``.
    """
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(fn.loc, fn.variance.sqrt(), validate_args=False)
    if not (isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1 and len(fn.event_shape) == 1):
        return None
    return None if fn.base_dist.event_shape or base_name(fn) == "Delta" else fn.base_dist


def _scores(site: Site, data_plate: DataPlate) -> tuple[Tensor, Tensor]:
    """Score each draw under the code of each datum.

    Returns:
        The log-density log q(z_i|x_j) of z_i, shape ``(B, K, B)``, and the log-densities of its units, shape ``(B, K,
        B, Z)``, in nats.
    """
    fn, units, size = site["fn"], _marginals(site["fn"]), data_plate.size
    assert units is not None  # _only_site has checked
    axis = data_plate.dim - 1
    z = site["value"].movedim(axis, 0).unsqueeze(axis)
    by_unit = units.log_prob(z).reshape(size, -1, size, z.shape[-1])
    independent = isinstance(fn, Independent)
    return by_unit.sum(-1) if independent else fn.log_prob(z).reshape(size, -1, size), by_unit
