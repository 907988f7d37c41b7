r"""Total correlation: the rate in three parts, each with a weight.

.. math:: \underbrace{E_n\, KL(q(z|x_n) \| p(z))}_{\text{rate}} = I(x; z)
    + \underbrace{KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)}_{\text{total correlation}}
    + \underbrace{KL\big(\textstyle\prod_j q(z_j) \| p(z)\big)}_{\text{of the units}}

:math:`q(z) = \tfrac1N \sum_n q(z|x_n)` needs all data; in a step it is estimated from the codes of the batch, see
:func:`batch_weights`. ``evidence.aggregate_posterior`` evaluates a trained model exactly.
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
    r"""Return the weights of a batch's codes in estimates of q(z).

    .. math:: \hat q(z_i) = \textstyle\sum_j W_{ij}\, q(z_i | x_j), \qquad z_i \sim q(z | x_i)

    - ``"weighted"``: :math:`W_{ij} = 1 / (N B)`. They sum to 1/N: an estimate of q(z) up to a factor, which has no
      gradient, and which :class:`TotalCorrelation` leaves out. The draw's own code is as heavy as any other, so the estimate
      of I(x; z) cannot exceed log B.
    - ``"stratified"``: with M = B - 1, own code 1/N, the next one in the batch (N - M) / (N M), each other one 1/M.
      :math:`E\, \hat q(z_i) = q(z_i)` over batches of distinct data that hold datum i.
    - ``"even"``: own code 1/N, each other one (N - 1) / (N M). This is the mean of ``"stratified"`` over the order of the
      batch: the same expectation, less variance, less bias of the logarithm, and at B = N q(z) itself.

    The logarithm of an unbiased estimate is biased low. A batch of one has weight 1 (``"weighted"``: 1/N).

    Args:
        estimator: One of the names above.
        batch_size: B.
        num_data: N, at least B.

    Returns:
        W, shape ``(B, B)``, float64; row i for draws from the code of datum i.

    Raises:
        ValueError: If the name is unknown, B is below 1 or N below B.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, section 4.1
        and appendix C. The code released with it fills two columns of W, where the definition has two diagonals.
    """
    fill = lookup("estimator", estimator, ESTIMATORS)
    check_count("batch_size", batch_size)
    check_count("num_data", num_data)
    if num_data < batch_size:
        raise ValueError(
            f"num_data: expected at least the {batch_size} data of a batch, got {num_data}; give the size of the training data."
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


#: An estimate of the total correlation below this, nats, is more than noise.
BELOW = -0.1

#: Estimators of q(z) by name: B and N to the weights, shape ``(B, B)``.
ESTIMATORS = {"even": _even, "stratified": _stratified, "weighted": _weighted}


class TotalCorrelation(KLControl):
    r"""The rate in three parts with a weight each: beta-TC.

    .. math:: \text{distortion} + \alpha\, I(x; z) + \beta\, KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)
        + \gamma\, KL\big(\textstyle\prod_j q(z_j) \| p(z)\big)

    Written as the wrapped loss plus (weight - 1) times each part, so that equal weights of 1 are the ELBO exactly, its KL in
    closed form over ``mean-field``. A weight on the total correlation alone asks for independent units and leaves their
    information about the data untouched. The parts are estimated from the codes of the batch, with
    the gradient of all of them; their sum is the rate, draw by draw, whatever the batch. At weights other than 1 the loss
    is no bound; ``bound``, rate and distortion stay the true ones.

    A common beta of ``scale_kl_pair`` multiplies all three. The best epoch is that of the largest ELBO (under that beta):
    the total correlation of validation data is not known, since it belongs to a set, not to a datum.

    Args:
        objective: ``elbo("trace")`` or ``elbo("mean-field")``. Its draws are scored under the codes of all data of the
            batch: K x B x B x Z densities.
        weight: :math:`\beta`, of the total correlation.
        information_weight: :math:`\alpha`, of I(x; z).
        unit_weight: :math:`\gamma`, of the units' KL.
        estimator: Weights of the codes of a batch, see :func:`batch_weights`. ``"even"`` and ``"stratified"`` are for
            batches that hold neighbours of each code, with log B well above I(x; z). Without neighbours they estimate the
            joint density far too small, more so than the units'. The penalty then falls below 0 and rewards units that
            depend on each other (``fit`` warns of it). The error of ``"weighted"`` has the other sign, and lowers I(x; z),
            too.
        num_data: N, the size of the training data; None: the full size of the data plate, which is B if the plate is the
            batch. Then ``"even"`` is the mean of the batch, as ``"weighted"`` is at any N.

    Raises:
        TypeError: If it is another objective, or a weight is no number.
        ValueError: If a weight is negative, or the estimator unknown. When called: unless there is one latent site, in the
            data plate alone, with marginals in closed form; or if N is below B.

    References:
        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", 2018, eq. 2 and 4.
    """

    name = "total correlation"
    takes_beta = True
    across_batch = False  # a sum over data: each of several processes compares the codes of its own share

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
        """Return the loss with the true rate and distortion; see :class:`Terms`.

        Raises:
            ValueError: See the class.
        """
        pairs = [Pair(*traces) for traces in self.objective._get_traces(model, guide, args, kwargs)]
        for pair in pairs:
            check_match(*pair)
            check_kl_scales(*pair)
        data_plate = find_data_plate(*pairs[0], self.plate)
        parts = [self._particle(pair, data_plate) for pair in pairs]
        return Terms(*(torch.stack(part).mean(0) for part in zip(*parts, strict=True)))

    def epoch_warning(self, objective: float, elbo: float, batch_size: int) -> str | None:
        """Return a warning if the estimated total correlation is below 0.

        Args:
            objective: Mean objective of the epoch, nats per datum.
            elbo: Mean ELBO, - distortion - rate.
            batch_size: B.

        Returns:
            A sentence, or None.
        """
        if self.weight <= 1 or (self.information_weight, self.unit_weight) != (1, 1):
            return None
        value = (elbo - objective) / (self.weight - 1)
        if value >= BELOW:
            return None
        return (
            f"{self.name}: expected an estimate of at least 0, got {value:.2f} nats: a batch of {batch_size} holds too few "
            "neighbours of a code, and the penalty is a reward; take larger batches, or in Python estimator='weighted'."
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
        """Return I(x; z), total correlation and the units' KL, nats.

        Each has shape ``(B,)`` and is a mean over draws.
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
        """Return the latent site in the model and in the guide."""
        found = [*latent_sites(pair)]
        if len(found) != 1 or auxiliary_sites(*pair):
            names = sorted({n for n, _, _ in found} | {n for n, _ in auxiliary_sites(*pair)})
            raise ValueError(
                f"{self.name}: expected one latent site, in model and guide, got {len(names)}: {', '.join(names)}; join them "
                "into one vector."
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
                f"{self.name}: expected a normal or independent units at site {name!r}, in the data plate alone and without a "
                f"mask, got {what}; the marginals of its units must be known."
            )
        return model_site, site


def _marginals(fn: Distribution) -> Distribution | None:
    """Return the units as scalar distributions; None without a closed form.

    Their batch shape is ``(..., B, Z)``.
    """
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(fn.loc, fn.variance.sqrt(), validate_args=False)
    if not (isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1 and len(fn.event_shape) == 1):
        return None
    return None if fn.base_dist.event_shape or base_name(fn) == "Delta" else fn.base_dist


def _scores(site: Site, data_plate: DataPlate) -> tuple[Tensor, Tensor]:
    """Score each draw under the code of each datum.

    Returns:
        log q(z_i|x_j), shape ``(B, K, B)``, and by unit, shape ``(B, K, B, Z)``, nats.
    """
    fn, units, size = site["fn"], _marginals(site["fn"]), data_plate.size
    assert units is not None  # _only_site has checked
    axis = data_plate.dim - 1
    z = site["value"].movedim(axis, 0).unsqueeze(axis)
    by_unit = units.log_prob(z).reshape(size, -1, size, z.shape[-1])
    independent = isinstance(fn, Independent)
    return by_unit.sum(-1) if independent else fn.log_prob(z).reshape(size, -1, size), by_unit
