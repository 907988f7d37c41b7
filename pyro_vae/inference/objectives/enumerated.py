"""The objective ``enum``: the ELBO with discrete sites summed out."""

from __future__ import annotations

import logging

import pyro
import torch
from pyro.infer import elbo
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.handlers import check_kl_scales
from pyro_vae.inference.objectives.bound import Bound, Terms
from pyro_vae.inference.objectives.particles import data_scale
from pyro_vae.inference.program.checks import check_scales, how_to_mark, refuse_points
from pyro_vae.inference.program.data_plate import DataPlate, find_data_plate
from pyro_vae.inference.program.sites import (
    distribution_mask,
    drawn_sites,
    is_auxiliary_loss,
    plates_of,
    sample_sites,
)
from pyro_vae.inference.program.sums import RunningSum
from pyro_vae.inference.program.traces import Args, Kwargs, Pair, Program
from pyro_vae.inference.weights.draws import OuterScale
from pyro_vae.inference.weights.enumeration import EnumerationSums, log_sum_exp, mean_under


class TraceEnumELBO(Bound, pyro.infer.TraceEnum_ELBO):
    r"""The evidence lower bound (ELBO) with enumerated sites summed out.

    .. math:: \mathcal L(x) = E_{q(z|x)}\Big[\textstyle\sum_y q(y|x, z)\,
        \big(\log p(x, y, z) - \log q(y, z|x)\big)\Big] \le \log p(x)

    Here y stands for the sites that the guide enumerates (marked ``infer={"enumerate": "parallel"}``), and z for the
    other latent sites. Sites that only the model enumerates are summed out of p(x, z). Use this objective for models
    with discrete latent variables, such as unknown labels. The objective is a lower bound. Its estimate and its
    gradient are unbiased, and the gradient has no score-function terms for y.

    If every enumerated site lies in the data plate and in no plate inside a datum, this class computes the sum itself.
    Otherwise Pyro's tensor contraction computes the loss, and no rate or distortion is available.

    - With ``scale_kl_pair``, the loss is exactly distortion + beta * rate if the guide enumerates every enumerated
      site. Sites that only the model enumerates, and sites that depend on them, cannot have a KL weight.
    - A masked enumerated site, such as a known label under ``obs_mask``, counts once, not once for each value.
    - A site that the guide observes is left out of log q.
    - If no site is enumerated, as with relaxed labels, the objective equals ``TraceELBO`` and warns; ``fit`` raises an error.

    Args:
        *args: See ``pyro.infer.TraceEnum_ELBO``; ``num_particles`` is K, the number of draws averaged for each datum.
        plate: Name of the data plate; needed if several plates enclose every site.
        **options: See ``pyro.infer.TraceEnum_ELBO``.

    References:
        Obermeyer et al., "Tensor Variable Elimination for Plated Factor Graphs", 2019.
    """

    def _guess_max_plate_nesting(self, *args: object, **kwargs: object) -> None:
        """Find the number of plate dimensions, without Pyro's log message."""
        level = elbo.logger.level
        elbo.logger.setLevel(logging.WARNING)
        try:
            super()._guess_max_plate_nesting(*args, **kwargs)
        finally:
            elbo.logger.setLevel(level)

    def _get_trace(self, model: Program, guide: Program, args: Args, kwargs: Kwargs) -> tuple[Trace, Trace]:
        """Return traces of model and guide, without the guide's observed sites.

        Pyro's tensor contraction would treat these sites as drawn, and count them in log q.
        """
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        for name, site in list(sample_sites(guide_trace)):
            if site["is_observed"] and not is_auxiliary_loss(site):
                guide_trace.remove_node(name)
        return model_trace, guide_trace

    def _bound(
        self, model: Program, guide: Program, args: Args, kwargs: Kwargs, plate: str | None, outer_scale: OuterScale
    ) -> Tensor:
        values = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            if outer_scale == "refuse":
                check_scales(model_trace, guide_trace)
            refuse_points(model_trace, guide_trace)
            sums = ElboSums(Pair(model_trace, guide_trace), int(self.max_plate_nesting), plate)
            values.append(sums.mean(sums.likelihood + sums.ratio))
        return torch.cat(values).mean(0)

    def terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Terms:
        """Compute loss, rate and distortion; see :meth:`Bound.terms`.

        Raises:
            NotSimpleError: If the sum over values cannot be computed separately for each datum, or if a site is neither
                enumerated nor reparameterized.
            ValueError: If Pyro's tensor contraction is needed and would count a masked site once for each of its
                values.
        """
        parts = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            try:
                sums = ElboSums(Pair(model_trace, guide_trace), int(self.max_plate_nesting), self.plate)
                extra = sums.training_terms()
                _check_gradients(guide_trace)
            except NotSimpleError:
                _refuse_masked(model_trace, guide_trace)
                raise
            scale = data_scale(sums.pair, sums.data_plate)
            loss = -(scale * sums.mean(sums.likelihood + sums.tempered) + extra).mean(0).sum()
            likelihood, ratio = (sums.mean(part).detach().mean(0).sum() for part in (sums.likelihood, sums.ratio))
            parts.append((loss, -likelihood, -ratio))
        return Terms(*(torch.stack(part).mean(0) for part in zip(*parts, strict=True)))

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """Compute the differentiable loss: 0-dim, nats, summed over the batch."""
        try:
            return self.terms(model, guide, *args, **kwargs).loss
        except NotSimpleError:
            return pyro.infer.TraceEnum_ELBO.differentiable_loss(self, model, guide, *args, **kwargs)

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """Compute the loss without gradient: a number, nats, summed over the batch."""
        with torch.no_grad():
            try:
                return torch_item(self.terms(model, guide, *args, **kwargs).loss)
            except NotSimpleError:
                return pyro.infer.TraceEnum_ELBO.loss(self, model, guide, *args, **kwargs)


class NotSimpleError(ValueError):
    """Error for a program whose loss needs Pyro's tensor contraction."""


def _refuse_masked(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse masks that Pyro's tensor contraction handles wrongly.

    With such a mask, the contraction counts an enumerated site once for each of its values. Two masks are refused: a
    mask of the distribution at a site that only the model enumerates, and the constant mask False in the guide. A mask
    of the site, from ``poutine.mask`` or ``obs_mask``, does not change the probabilities of the values and is allowed.
    """
    ours = [(name, site) for name, site in sample_sites(model_trace) if name not in guide_trace]
    for name, site in (*ours, *sample_sites(guide_trace)):
        mask = None if site["is_observed"] or not site["infer"].get("enumerate") else distribution_mask(site["fn"])
        in_guide = name in guide_trace and mask is not None and mask.dim() > 0
        if mask is not None and not in_guide and not bool(mask.all()):
            raise ValueError(
                f"enumerated site {name!r}: a masked distribution cannot be combined with sites that are not summed or "
                "reparameterized for each datum (Pyro counts masked values); put poutine.mask around the site instead."
            )


class ElboSums(EnumerationSums):
    """Parts of the ELBO, with the enumerated sites still on axes.

    Each part has the shape ``(E..., K, B)``, nats: an axis E for each enumerated site, K draws, B data.

    Attributes:
        likelihood: Log-likelihood; sites that only the model enumerates are summed out.
        ratio: log p - log q of the latent sites that are not summed out.
        tempered: ``ratio`` with the KL weights from ``scale_kl``.
        log_q: log q of the sites that the guide enumerates.
    """

    def __init__(self, pair: Pair, nesting: int, plate: str | None) -> None:
        check_kl_scales(*pair)
        data_plate = find_data_plate(*pair, plate)
        super().__init__(pair, data_plate, _plain_sites(pair, data_plate), nesting)
        sums = self.model_sums()
        self._check_model(sums.joint_sites)
        self.likelihood, self.ratio, self.tempered = sums.likelihood, sums.prior, sums.tempered
        if sums.joint is not None:
            self.likelihood = self.likelihood + log_sum_exp(sums.joint, self.of_model)
        log_q = RunningSum()
        for name, site in sample_sites(pair.guide):
            if not is_auxiliary_loss(site):
                plain, tempered = self.log_probs(name, site)
                self.ratio, self.tempered = self.ratio - plain, self.tempered - tempered
                if name in self.sites:
                    log_q.add(plain)
        self.log_q = log_q.value(self.ratio)

    def _check_model(self, joint_sites: list[str]) -> None:
        for name, site in sample_sites(self.pair.model):
            if name in joint_sites:
                if site.get("kl_scales"):
                    raise ValueError(
                        f"enum: a KL weight, here at site {name!r}, cannot be combined with a site enumerated in the model; "
                        "remove beta, or enumerate in the guide."
                    )
            elif not site["is_observed"] and not is_auxiliary_loss(site) and name not in self.pair.guide:
                raise ValueError(
                    f"latent site {name!r}: missing from the guide, and not enumerated in the model; add the site to the "
                    f"guide, or {how_to_mark(name)}."
                )

    def mean(self, values: Tensor) -> Tensor:
        """Average over the guide's enumerated sites, with weights q.

        Args:
            values: Numbers to average, shape ``(E..., K, B)``: an axis E for each enumerated site, K draws, B data.

        Returns:
            Averages, shape ``(K, B)``.
        """
        values = mean_under(self.log_q.exp(), values, self.of_guide) if self.of_guide else values
        return values.reshape(-1, values.shape[-1]).expand(-1, self.data_plate.size)

    def training_terms(self) -> Tensor:
        """Sum the training terms: sites marked ``auxiliary_loss``, with all scales.

        Returns:
            Sum of the training terms, shape ``(K, B)``, nats.

        Raises:
            NotSimpleError: If a training term lies outside the data plate.
        """
        extra = RunningSum()
        for add, trace in ((extra.add, self.pair.model), (extra.subtract, self.pair.guide)):
            for name, site in sample_sites(trace):
                if is_auxiliary_loss(site):
                    if self.data_plate.plate not in plates_of(site):
                        raise NotSimpleError(
                            f"enum: expected training terms inside the data plate, got site {name!r} outside; move the site "
                            "into the plate."
                        )
                    add(self.per_datum(site["log_prob"]))
        return self.mean(extra.value(self.zero()))


def _plain_sites(pair: Pair, data_plate: DataPlate) -> list[str]:
    """Check the enumerated sites' plates and axes; return the names.

    Raises:
        NotSimpleError: If an enumerated site is in a plate inside a datum, is enumerated in part, or shares its axis with
            another site.
    """
    enumerated = {name: site for name, site in sample_sites(pair.guide) if "_enumerate_dim" in site["infer"]}
    for name, site in sample_sites(pair.model):
        if "_enumerate_dim" in site["infer"] and name not in pair.guide:
            enumerated[name] = site
    for name, site in enumerated.items():
        infer = site["infer"]
        within = [
            frame.name
            for frame in plates_of(site).values()
            if frame.name != data_plate.plate and frame.dim is not None and frame.size > 1
        ]
        if within:
            raise NotSimpleError(
                f"enum: a bound for each datum needs enumerated sites in the data plate only, but {name!r} is in plate "
                f"{within[0]!r} too; use loss instead of bound and terms."
            )
        if infer.get("num_samples") is not None or infer.get("enumerate") == "sequential":
            raise NotSimpleError(
                f"enum: a bound for each datum needs parallel enumeration of all values, but site {name!r} is sequential or "
                "has num_samples; use loss instead of bound and terms."
            )
    if len({site["infer"]["_enumerate_dim"] for site in enumerated.values()}) < len(enumerated):
        raise NotSimpleError(
            "enum: a bound for each datum needs one axis for each enumerated site, but pyro.markov shares axes; use loss "
            "instead of bound and terms."
        )
    return list(enumerated)


def _check_gradients(guide_trace: Trace) -> None:
    """Refuse sites of the guide that need a score-function term.

    Raises:
        NotSimpleError: If a site is neither enumerated nor reparameterized.
    """
    for name, site in drawn_sites(guide_trace):
        if not is_auxiliary_loss(site) and "_enumerate_dim" not in site["infer"] and not site["fn"].has_rsample:
            raise NotSimpleError(
                f"enum: site {name!r} is neither enumerated nor reparameterized; {how_to_mark(name)}, or use elbo('trace')."
            )
