r"""The array everything else is a reduction of: log importance weights, one for each draw and datum.

.. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.handlers import check_kl_scales

Site = dict[str, Any]
OuterScale = Literal["refuse", "ignore"]
PARTICLES = "_log_weights_particles"
_PARTICLE_PLATES = {PARTICLES, "num_particles_vectorized"}  # ours, and that of Pyro's objectives


class WeightTerms(NamedTuple):
    r"""The two parts of log w, each of shape ``(K, B)``, nats: their sum is log w.

    Attributes:
        log_likelihood: log p(x|z), the observed sites. Its mean over draws is minus the distortion.
        log_ratio: log p(z) - log q(z|x), the latent sites. Its mean over draws is minus the rate.
    """

    log_likelihood: Tensor
    log_ratio: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights, shape ``(K, B)``, nats."""
        return self.log_likelihood + self.log_ratio


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1,
    plate: str | None = None,
    outer_scale: OuterScale = "refuse",
    vectorize: bool = True,
    **kwargs: Any,
) -> Tensor:
    r"""Log importance weights of any Pyro model and guide, for each draw and datum.

    .. math:: \log w_{ki} = \log p(x_i, z_{ki}) - \log q(z_{ki} | x_i), \quad z_{ki} \sim q(z | x_i)

    Masks are applied. A plate's N/B and the factors of ``scale_kl`` do not enter. Sites marked
    ``infer={"auxiliary_loss": True}`` are left out. Differentiable, with reparameterized draws where the guide has them.

    The *data plate* is the one plate that encloses every observed and latent site; log w is summed over everything
    inside one of its elements. Sites marked for enumeration are sampled.

    Args:
        model: A Pyro model.
        guide: Its guide, over the same latent sites.
        *args: What model and guide take, as in ``SVI.step``.
        num_samples: K, at least 1.
        plate: Name of the data plate, where several enclose every site.
        outer_scale: ``"refuse"`` a ``poutine.scale`` other than 1 on a site, or ``"ignore"`` it.
        vectorize: Draw all K in one call, in an outermost plate; else in K calls. A program that fails inside such a
            plate is drawn from one by one, with a warning.
        **kwargs: Likewise.

    Returns:
        Shape ``(K, B)``, nats.

    Raises:
        ValueError: If there is no data plate, a latent site lies outside it, model and guide disagree on latent sites,
            a site carries a scale that is not understood, or ``num_samples`` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}.")
    draws = ProposalDraws(model, guide, args, kwargs, plate, outer_scale, vectorize)
    return draws(num_samples).log_w


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace that have a log-probability: no subsampling, no ``pyro.deterministic``."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if not site["infer"].get("_deterministic", False):
            yield name, site


def site_log_prob(site: Site) -> Tensor:
    """Log-probability of a site's value, masked, without any scale; shape of the site's batch."""
    log_prob = site.get("unscaled_log_prob")
    if log_prob is None:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, mask=site["mask"])


def is_auxiliary_loss(site: Site) -> bool:
    """Whether a site is a training term only, which enters no bound and no evidence."""
    return bool(site["infer"].get("auxiliary_loss", False))


@dataclass(frozen=True)
class Layout:
    """Where the data lie in the batch shape of a program's sites.

    Attributes:
        plate: Name of the data plate.
        dim: Its dimension, negative.
        size: B, how many data are in it.
        full_size: N, how many data it stands for (B unless it subsamples).
        nesting: How many batch dimensions the program's plates use; the particle axis lies to their left.
    """

    plate: str
    dim: int
    size: int
    full_size: int
    nesting: int

    def per_datum(self, log_prob: Tensor) -> Tensor:
        """Sum a log-probability over everything inside one datum.

        Args:
            log_prob: Shape that broadcasts to ``(K, ..., B, ...)`` with ``nesting`` dimensions after K.

        Returns:
            Shape ``(K, B)``; K is 1 where there is no particle axis.
        """
        padded = log_prob.reshape((1,) * (self.nesting + 1 - log_prob.dim()) + log_prob.shape)
        kept = padded.movedim(self.dim, 1)
        return kept.reshape(*kept.shape[:2], -1).sum(-1).expand(-1, self.size)


def find_layout(model_trace: Trace, guide_trace: Trace, plate: str | None = None) -> Layout:
    """Find the data plate of a model and guide, from one trace of each.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.
        plate: Its name, where several plates enclose every site.

    Raises:
        ValueError: If no plate encloses every observed site, a latent site lies outside, or several would do.
    """
    sites = [(n, s) for n, s in sample_sites(model_trace) if not is_auxiliary_loss(s)]
    observed = [(n, s) for n, s in sites if s["is_observed"]]
    if not observed:
        raise ValueError("model: expected an observed site, got none; pass the data by obs=... or pyro.condition.")
    latent = [(n, s) for n, s in sites if not s["is_observed"]]
    latent += [(n, s) for n, s in sample_sites(guide_trace) if not s["is_observed"]]
    around = [plates_of(s) for _, s in observed]
    candidates = set(around[0]).intersection(*around)
    if not candidates:
        raise ValueError(
            f"data plate: expected one pyro.plate around every observed site, got none around {observed[0][0]!r}; "
            "write `with pyro.plate('data', len(x)):` around the sites of one datum."
        )
    if plate is not None and plate not in candidates:
        raise ValueError(f"plate: expected one that encloses every observed site, {sorted(candidates)}, got {plate!r}.")
    inside = [p for p in candidates if all(p in plates_of(s) for _, s in latent)]
    chosen = [plate] if plate else inside
    for name, site in latent:
        if not set(chosen or candidates) & set(plates_of(site)):
            raise ValueError(
                f"latent site {name!r}: expected inside the data plate {sorted(chosen or candidates)}, got outside; "
                "log weights are for each datum, so move it into the plate or make it a parameter."
            )
    if len(chosen) != 1:
        raise ValueError(f"data plate: expected one, got {sorted(chosen or candidates)}; name it by plate=...")
    frame = plates_of(observed[0][1])[chosen[0]]
    if frame.dim is None:
        raise ValueError(
            f"data plate {frame.name!r}: expected a vectorized plate, got a loop over it; write `with pyro.plate(...)`."
        )
    return Layout(frame.name, frame.dim, frame.size, frame.full_size, _nesting(model_trace, guide_trace))


def plates_of(site: Site) -> dict[str, Any]:
    """The plates around a site by name, without particle axes."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.name not in _PARTICLE_PLATES}


def _nesting(*traces: Trace) -> int:
    dims = [f.dim for t in traces for _, s in sample_sites(t) for f in plates_of(s).values() if f.vectorized]
    return -min(dims, default=0)


def check_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a model and guide that do not have the same latent sites.

    Raises:
        ValueError: If a latent site is in one of the two only (a guide's site may be marked ``is_auxiliary``).
    """
    ours = {n for n, s in sample_sites(model_trace) if not s["is_observed"]}
    theirs = {n: s for n, s in sample_sites(guide_trace) if not s["is_observed"]}
    for name in ours - set(theirs):
        raise ValueError(
            f"latent site {name!r}: expected in model and guide, got in the model only; add it to the guide."
        )
    for name in set(theirs) - ours:
        if not theirs[name]["infer"].get("is_auxiliary", False):
            raise ValueError(
                f"latent site {name!r}: expected in model and guide, got in the guide only; add it to the model, or mark "
                "it infer={'is_auxiliary': True}."
            )


def check_scales(*traces: Trace) -> None:
    """Refuse a scale that is neither a plate's N/B nor ``scale_kl``'s.

    Raises:
        ValueError: If a site carries another factor.
    """
    for trace in traces:
        for name, site in sample_sites(trace):
            known: Any = 1.0
            for frame in site["cond_indep_stack"]:
                known = known * frame.full_size / frame.size
            for beta in site.get("kl_scales", ()):
                known = known * beta
            got = torch.as_tensor(site["scale"], dtype=torch.float64)
            if not bool(torch.isclose(got, torch.as_tensor(known).to(got), rtol=1e-5).all()):
                raise ValueError(
                    f"site {name!r}: expected a scale of 1 beside the plates' N/B and scale_kl, got a poutine.scale; "
                    "log weights have no meaning for it: take it off, or pass outer_scale='ignore'."
                )


class ProposalDraws:
    """Draws from the guide for one batch of data; each call gives the two parts of log w.

    The first trace finds the layout and is checked. Where the guide has one latent site, its distribution is kept, so
    that the encoder runs once however many draws follow; with several sites the guide runs once a call, since a
    later site may depend on the draw of an earlier one. A plate that subsamples keeps its first subsample.

    Args:
        model: A Pyro model.
        guide: Its guide.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        plate: Name of the data plate, see :func:`find_layout`.
        outer_scale: See :func:`log_weights`.
        vectorize: See :func:`log_weights`.

    Raises:
        ValueError: See :func:`log_weights`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        plate: str | None = None,
        outer_scale: OuterScale = "refuse",
        vectorize: bool = True,
    ) -> None:
        if outer_scale not in ("refuse", "ignore"):
            raise ValueError(f"outer_scale: expected 'refuse' or 'ignore', got {outer_scale!r}.")
        self.model, self.args, self.kwargs, self.vectorize = model, args, kwargs, vectorize
        self.guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.trace(poutine.replay(model, trace=self.guide_trace)).get_trace(*args, **kwargs)
        check_match(replayed, self.guide_trace)
        check_kl_scales(replayed, self.guide_trace)
        if outer_scale == "refuse":
            check_scales(replayed, self.guide_trace)
        self.layout = find_layout(replayed, self.guide_trace, plate)
        self._first = replayed
        # Every call sees the same data: the draws of subsampling sites stay as they are.
        fixed = Trace()
        for trace in (self.guide_trace, replayed):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample" and name not in fixed:
                    fixed.add_node(name, **site)
        self.model = poutine.replay(model, trace=fixed)
        self.guide = poutine.replay(guide, trace=fixed)

    def __call__(self, num_samples: int) -> WeightTerms:
        """Draw.

        Args:
            num_samples: K.

        Returns:
            Log likelihood and log ratio, each of shape ``(K, B)``, nats.
        """
        with validation_enabled(False):  # the first trace was validated, and those checks know no particle axis
            if self.vectorize:
                try:
                    return self._draw(num_samples)
                except (RuntimeError, ValueError, IndexError) as error:
                    self.vectorize = False
                    warnings.warn(
                        f"log weights: this program does not run inside an outer plate ({error}); drawing one by one "
                        "instead, which is slower. Fold leading dimensions in its networks, or pass vectorize=False.",
                        stacklevel=3,
                    )
            terms = [self._draw(1) for _ in range(num_samples)]
            return WeightTerms(*(torch.cat(part) for part in zip(*terms, strict=True)))

    @property
    def first(self) -> WeightTerms:
        """The draw of the first trace, K = 1: at no further cost."""
        return self._reduce(self._first, self.guide_trace, 1)

    def _draw(self, num_samples: int) -> WeightTerms:
        guide_trace = self._guide_trace(num_samples)
        with self._particles(num_samples):
            model_trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(
                *self.args, **self.kwargs
            )
        return self._reduce(model_trace, guide_trace, num_samples)

    def _particles(self, num_samples: int) -> AbstractContextManager[Any]:
        return pyro.plate(PARTICLES, num_samples, dim=-self.layout.nesting - 1) if self.vectorize else nullcontext()

    def _guide_trace(self, num_samples: int) -> Trace:
        """A trace of the guide with a leading particle axis."""
        sites = dict(sample_sites(self.guide_trace))
        if not self.vectorize or len(sites) != 1:
            with self._particles(num_samples):
                return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        ((name, site),) = sites.items()
        missing = self.layout.nesting - len(site["fn"].batch_shape)
        value = site["fn"](torch.Size((num_samples,) + (1,) * missing))
        trace = self.guide_trace.copy()
        trace.nodes[name] = {**site, "value": value}
        trace.nodes[name].pop("unscaled_log_prob", None)
        return trace

    def _reduce(self, model_trace: Trace, guide_trace: Trace, num_samples: int) -> WeightTerms:
        likelihood: list[Tensor] = []
        ratio: list[Tensor] = []
        for _, site in sample_sites(model_trace):
            if not is_auxiliary_loss(site):
                (likelihood if site["is_observed"] else ratio).append(self.layout.per_datum(site_log_prob(site)))
        for _, site in sample_sites(guide_trace):
            if not is_auxiliary_loss(site):
                ratio.append(-self.layout.per_datum(site_log_prob(site)))
        shape = (num_samples, self.layout.size)
        zero = likelihood[0].new_zeros(shape)
        return WeightTerms(sum(likelihood, start=zero).expand(shape), sum(ratio, start=zero).expand(shape))


def prior_guide(model: Callable[..., Any]) -> Callable[..., Any]:
    """The guide that samples the model's latent sites from their prior, q(z) = p(z)."""

    def guide(*args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"]):
            return model(*args, **kwargs)

    return guide
