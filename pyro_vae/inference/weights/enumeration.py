"""Sums over enumerated sites: likelihood, ratio and log weight of each datum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from pyro_vae.inference.program.traces import Pair


class EnumeratedTerms(NamedTuple):
    r"""What K draws say of each datum, each of shape ``(K, B)``, nats; y are the enumerated sites, z the drawn ones.

    The first two are what ``WeightTerms`` names so, averaged over y under q; their sum averages to the ELBO. Unlike there
    it is not ``log_w``, but at most that, by Jensen's inequality.

    Attributes:
        log_likelihood: :math:`\sum_y q(y)\, \log p(x|y, z)`. Its mean over draws is minus the distortion.
        log_ratio: :math:`\sum_y q(y)\, [\log p(y, z) - \log q(y, z|x)]`. Its mean over draws is minus the rate.
        log_w: :math:`\log \sum_y p(x, y, z) / q(z|x, y)`. The mean of its exponential over draws is p(x), without bias.
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    log_w: Tensor


def enumerated_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Names of the latent sites to be summed over: marked ``infer={"enumerate": "parallel"}`` where they are drawn.

    A site of the guide counts if the guide marks it; one of the model alone, if the model does.
    """
    ours = [(n, s) for n, s in sample_sites(model_trace) if n not in guide_trace.nodes]
    return [name for name, site in (*sample_sites(guide_trace), *ours) if _is_enumerated(site)]


def _is_enumerated(site: Site) -> bool:
    return site["infer"].get("enumerate") == "parallel" and not site["is_observed"] and not is_auxiliary_loss(site)


def support_size(pair: Pair, name: str) -> int:
    """How many values an enumerated site has."""
    trace = pair.guide if name in pair.guide.nodes else pair.model
    return len(trace.nodes[name]["fn"].enumerate_support(expand=False))


def counted_once(site: Site) -> Tensor:
    """Log-probability of an enumerated site, masked: where a mask leaves it out, all its values together count once.

    Each has the same share there, minus the log of their number, and not 0, by which they would count one by one. The mask
    is the site's (``poutine.mask``, ``obs_mask``) or its distribution's (``dist.Categorical(p).mask(m)``).
    """
    log_prob = site_log_prob(site)
    mask = mask_of(site)
    if mask is None:
        return log_prob
    share = -math.log(len(site["fn"].enumerate_support(expand=False)))
    return torch.where(mask.to(log_prob.device), log_prob, share)


class EnumeratedSums:
    """The terms of one pair of traces; arrays are of shape ``(E..., K, B)``, where E are the values of each enumerated site."""

    def __init__(self, pair: Pair, data_plate: DataPlate, sites: Sequence[str], num_samples: int) -> None:
        self.pair, self.data_plate, self.sites = pair, data_plate, sites
        self.shape = (num_samples, data_plate.size)
        particles = any(f.name == PARTICLES for _, s in sample_sites(pair.model) for f in s["cond_indep_stack"])
        self.deep = self.data_plate.nesting + particles
        dims = {name: self._dim(name) for name in sites}
        if len(set(dims.values())) != len(dims):
            raise ValueError(
                f"enumerated sites {sorted(dims)}: expected an axis for each, got shared ones; take pyro.markov out of the "
                "program, or the marks off to sample them."
            )
        self.lead = max((-dim for dim in dims.values()), default=self.deep) - self.deep
        # From the place in a program's batch shape to that in (E..., K, B).
        axes = {name: dim + self.deep - 2 for name, dim in dims.items()}
        self.of_guide = [axis for name, axis in axes.items() if name in pair.guide.nodes]
        self.of_model = [axis for name, axis in axes.items() if name not in pair.guide.nodes]

    def _dim(self, name: str) -> int:
        trace = self.pair.guide if name in self.pair.guide.nodes else self.pair.model
        return int(trace.nodes[name]["infer"]["_enumerate_dim"])

    def terms(self) -> EnumeratedTerms:
        """The sums over y."""
        likelihood, prior = self.model_terms()
        log_qz, log_qy = self._guide()
        q = log_qy.exp()
        kept = [
            mean_under(q, likelihood, self.of_guide),
            mean_under(q, prior - log_qz - log_qy, self.of_guide),
            _log_sum_exp(likelihood + prior - log_qz, self.of_guide),
        ]
        return EnumeratedTerms(*(part.reshape(part.shape[-2:]).expand(self.shape) for part in kept))

    def model_terms(self) -> tuple[Tensor, Tensor]:
        """Log p(x|y, z) and log p(y, z), the model's own enumerated sites summed out of both."""
        likelihood: Any = 0.0
        prior: Any = 0.0
        joint: Any = 0.0
        latent: Any = 0.0
        for name, site in sample_sites(self.pair.model):
            if is_auxiliary_loss(site):
                continue
            term = self._per_datum(name, site)
            if any(term.shape[axis] > 1 for axis in self.of_model):
                joint = joint + term
                latent = latent if site["is_observed"] else latent + term
            elif site["is_observed"]:
                likelihood = likelihood + term
            else:
                prior = prior + term
        if isinstance(joint, Tensor):
            whole, marginal = _log_sum_exp(joint, self.of_model), _log_sum_exp(latent, self.of_model)
            prior = prior + marginal
            # Where p(z) is 0 so is the joint: the prior says it, and the likelihood is not asked.
            likelihood = likelihood + torch.where(marginal == -math.inf, 0.0, whole - marginal)
        return self._array(likelihood), self._array(prior)

    def _guide(self) -> tuple[Tensor, Tensor]:
        """Log q(z|x, y) and log q(y|x)."""
        log_qz: Any = 0.0
        log_qy: Any = 0.0
        for name, site in drawn_sites(self.pair.guide):
            if is_auxiliary_loss(site):
                continue
            term = self._per_datum(name, site)
            log_qz, log_qy = (log_qz, log_qy + term) if name in self.sites else (log_qz + term, log_qy)
        return self._array(log_qz), self._array(log_qy)

    def _array(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        observed = next(s for _, s in sample_sites(self.pair.model) if s["is_observed"])
        zero = site_log_prob(observed).detach().new_zeros(())
        return zero.reshape((1,) * (self.lead + 2))

    def _per_datum(self, name: str, site: Site) -> Tensor:
        """Sum a site's log-probability over everything inside one datum: shape ``(E..., K, B)``."""
        log_prob = counted_once(site) if name in self.sites else site_log_prob(site)
        padded = log_prob.reshape((1,) * (self.lead + self.deep - log_prob.dim()) + log_prob.shape)
        if self.deep == self.data_plate.nesting:
            padded = padded.unsqueeze(self.lead)
        data = padded.movedim(self.data_plate.dim, -1)
        return data.reshape(*data.shape[: self.lead + 1], -1, data.shape[-1]).sum(-2)


def _log_sum_exp(values: Tensor, axes: Sequence[int]) -> Tensor:
    return values.logsumexp(list(axes), keepdim=True) if axes else values


def mean_under(q: Tensor, values: Tensor, axes: Sequence[int]) -> Tensor:
    """The mean of values under q along these axes, kept; those of probability 0 enter neither it nor its gradient."""
    if not axes:
        return values
    return (q * torch.where(q == 0, 0.0, values)).sum(list(axes), keepdim=True)
