r"""Sums over enumerated sites, for each draw and datum.

Arrays have the shape ``(E..., K, B)``: one axis E for the values of each enumerated site, then K draws and B data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.inference.program.data_plate import DataPlate
from pyro_vae.inference.program.sites import (
    PARTICLES,
    Site,
    drawn_sites,
    is_auxiliary_loss,
    mask_of,
    sample_sites,
    site_log_prob,
)
from pyro_vae.inference.program.sums import RunningSum
from pyro_vae.inference.program.traces import Pair
from pyro_vae.inference.weights.terms import EnumeratedTerms


def enumerated_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Names of the latent sites that are marked for enumeration.

    The mark is ``infer={"enumerate": "parallel"}``. For a site in model and guide, only the mark in the guide counts.
    """
    ours = [(n, s) for n, s in sample_sites(model_trace) if n not in guide_trace.nodes]
    return [name for name, site in (*sample_sites(guide_trace), *ours) if _is_enumerated(site)]


def _is_enumerated(site: Site) -> bool:
    return site["infer"].get("enumerate") == "parallel" and not site["is_observed"] and not is_auxiliary_loss(site)


def support_size(pair: Pair, name: str) -> int:
    """Number of values of an enumerated site."""
    trace = pair.guide if name in pair.guide.nodes else pair.model
    return len(trace.nodes[name]["fn"].enumerate_support(expand=False))


def counted_once(site: Site) -> Tensor:
    """Log-probability of an enumerated site, corrected where it is masked.

    Where the mask is False, each of the n values gets log-probability -log n, so the sum of the probabilities is 1.
    With a log-probability of 0, as in Pyro, the sum would be n, and the site would count n times. The mask belongs to
    the site (``poutine.mask``, ``obs_mask``) or to the distribution (``dist.Categorical(p).mask(m)``).
    """
    log_prob = site_log_prob(site)
    mask = mask_of(site)
    if mask is None:
        return log_prob
    share = -math.log(len(site["fn"].enumerate_support(expand=False)))
    return torch.where(mask.to(log_prob.device), log_prob, share)


class ModelSums(NamedTuple):
    """Log-probabilities of a model, summed over each kind of site.

    Each sum has the shape ``(E..., K, B)``, nats: an axis E for each enumerated site, K draws, B data.
    *Model-enumerated* sites are enumerated in the model and not in the guide.

    Attributes:
        likelihood: Observed sites, except those in ``joint``.
        prior: Latent sites, except those in ``joint``.
        tempered: The same sites as in ``prior``, each multiplied by its KL weights from ``scale_kl``.
        joint: Model-enumerated sites and all sites that depend on them; None if no site is model-enumerated.
        latent: The latent sites in ``joint``; None if no site is model-enumerated.
        joint_sites: Names of the sites in ``joint``.
    """

    likelihood: Tensor
    prior: Tensor
    tempered: Tensor
    joint: Tensor | None
    latent: Tensor | None
    joint_sites: list[str]


class EnumerationSums:
    """Sums of log-probabilities for each value, draw and datum.

    Args:
        pair: Traces of model and guide with enumerated sites.
        data_plate: The data plate.
        sites: Names of the enumerated sites.
        nesting: Number of batch dimensions to the right of the enumeration axes. If None, this is the number of plate
            dimensions of model and guide, plus 1 for the plate over draws.

    Attributes:
        of_guide: Axes for the values of sites that the guide enumerates.
        of_model: Axes for the values of sites that only the model enumerates.

    Raises:
        ValueError: If two enumerated sites share an axis.
    """

    def __init__(self, pair: Pair, data_plate: DataPlate, sites: Sequence[str], nesting: int | None = None) -> None:
        self.pair, self.data_plate, self.sites = pair, data_plate, sites
        if nesting is None:
            particles = any(f.name == PARTICLES for _, s in sample_sites(pair.model) for f in s["cond_indep_stack"])
            nesting = data_plate.nesting + particles
        self.nesting = nesting
        dims = {name: self._dim(name) for name in sites}
        if len(set(dims.values())) != len(dims):
            raise ValueError(
                f"enumerated sites {sorted(dims)}: expected one axis for each site, got shared axes; remove pyro.markov, or "
                "the enumeration marks to sample the sites."
            )
        self.lead = max((-dim for dim in dims.values()), default=nesting) - nesting
        # Convert dimensions of a program's batch shape to axes of (E..., K, B).
        axes = {name: dim + nesting - 2 for name, dim in dims.items()}
        self.of_guide = [axis for name, axis in axes.items() if name in pair.guide.nodes]
        self.of_model = [axis for name, axis in axes.items() if name not in pair.guide.nodes]
        self._own = {name for name in sites if name not in pair.guide.nodes}

    def _dim(self, name: str) -> int:
        trace = self.pair.guide if name in self.pair.guide.nodes else self.pair.model
        return int(trace.nodes[name]["infer"]["_enumerate_dim"])

    def terms(self, num_samples: int) -> EnumeratedTerms:
        """Average or sum over the enumerated sites y, which gives the terms.

        Args:
            num_samples: K, the number of draws.

        Returns:
            Log-likelihood and log ratio averaged over y under q, and log w summed over y, each of shape ``(K, B)``, nats.
        """
        likelihood, prior = self.model_terms()
        guide_z, guide_y = RunningSum(), RunningSum()
        for name, site in drawn_sites(self.pair.guide):
            if not is_auxiliary_loss(site):
                (guide_y if name in self.sites else guide_z).add(self.log_probs(name, site)[0])
        zero = self.zero()
        log_qz, log_qy = guide_z.value(zero), guide_y.value(zero)
        q = log_qy.exp()
        kept = [
            mean_under(q, likelihood, self.of_guide),
            mean_under(q, prior - log_qz - log_qy, self.of_guide),
            log_sum_exp(likelihood + prior - log_qz, self.of_guide),
        ]
        shape = (num_samples, self.data_plate.size)
        return EnumeratedTerms(*(part.reshape(part.shape[-2:]).expand(shape) for part in kept))

    def model_terms(self) -> tuple[Tensor, Tensor]:
        """Return log p(x|y, z) and log p(y, z) of the model.

        Sites that only the model enumerates are summed out of both.

        Returns:
            The two log-probabilities, each of shape ``(E..., K, B)``, nats.
        """
        sums = self.model_sums()
        if sums.joint is None or sums.latent is None:
            return sums.likelihood, sums.prior
        whole, marginal = log_sum_exp(sums.joint, self.of_model), log_sum_exp(sums.latent, self.of_model)
        # If p(z) is 0, the joint is 0 too. Only the prior keeps the log of 0.
        likelihood = sums.likelihood + torch.where(marginal == -math.inf, 0.0, whole - marginal)
        return likelihood, sums.prior + marginal

    def model_sums(self) -> ModelSums:
        """Add up the model's log-probabilities over each kind of site."""
        likelihood, prior, tempered, joint, latent = (RunningSum() for _ in range(5))
        joint_sites = []
        for name, site in sample_sites(self.pair.model):
            if is_auxiliary_loss(site):
                continue
            plain, weighted = self.log_probs(name, site)
            if name in self._own or any(plain.shape[axis] > 1 for axis in self.of_model):
                joint_sites.append(name)
                joint.add(plain)
                if not site["is_observed"]:
                    latent.add(plain)
            elif site["is_observed"]:
                likelihood.add(plain)
            else:
                prior.add(plain)
                tempered.add(weighted)
        zero = self.zero()
        return ModelSums(
            likelihood.value(zero), prior.value(zero), tempered.value(zero), joint.total, latent.total, joint_sites
        )

    def log_probs(self, name: str, site: Site) -> tuple[Tensor, Tensor]:
        """Log-probability of a site, without and with KL weights.

        Returns:
            The log-probability, and its product with the KL weights from ``scale_kl``, each of shape ``(E..., K, B)``,
            nats.
        """
        log_prob = counted_once(site) if name in self.sites else site_log_prob(site)
        plain = self.per_datum(log_prob)
        betas = site.get("kl_scales", ())
        for beta in betas:
            log_prob = log_prob * beta
        return plain, (self.per_datum(log_prob) if betas else plain)

    def per_datum(self, log_prob: Tensor) -> Tensor:
        """Sum a site's log-probability over all dimensions inside each datum.

        Args:
            log_prob: Log-probability in the batch shape of a site, nats.

        Returns:
            Log-probability for each value, draw and datum, shape ``(E..., K, B)``, nats.
        """
        padded = log_prob.reshape((1,) * (self.lead + self.nesting - log_prob.dim()) + log_prob.shape)
        if self.nesting == self.data_plate.nesting:
            padded = padded.unsqueeze(self.lead)
        data = padded.movedim(self.data_plate.dim, -1)
        return data.reshape(*data.shape[: self.lead + 1], -1, data.shape[-1]).sum(-2)

    def zero(self) -> Tensor:
        """Zero of shape ``(1..., 1, 1)``, on the device of the data."""
        observed = next(site for _, site in sample_sites(self.pair.model) if site["is_observed"])
        zero = site_log_prob(observed).detach().new_zeros(())
        return zero.reshape((1,) * (self.lead + 2))


def log_sum_exp(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Take the logsumexp along axes; the axes are kept with length 1."""
    return values.logsumexp(list(axes), keepdim=True) if axes else values


def mean_under(q: Tensor, values: Tensor, axes: Sequence[int]) -> Tensor:
    """Average values with weights q along axes, kept with length 1.

    Where q is 0, a value changes neither the mean nor the gradient, even if it is infinite.
    """
    if not axes:
        return values
    return (q * torch.where(q == 0, 0.0, values)).sum(list(axes), keepdim=True)
