r"""Pyro handlers that weight the KL of a model and its guide.

In :math:`\mathcal L_\beta = E_q[\log p(x|z)] - \beta\, KL(q(z|x) \| p(z))` the weight :math:`\beta` multiplies two
log-probabilities: log p(z) at the latent sites of the model, and log q(z|x) at those of the guide. **Both** must be
weighted; :func:`scale_kl_pair` does so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import ParamSpec, TypeVar, overload

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.system.imports import capturing

Beta = float | Tensor
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def _is_latent(msg: Message) -> bool:
    """Return True if a site is a latent variable of the bound."""
    return (
        msg["type"] == "sample"
        and not msg["is_observed"]
        and type(msg["fn"]).__name__ != "_Subsample"
        and not msg["infer"].get("auxiliary_loss", False)
    )


def owner_of(auxiliary: str) -> str:
    """Return the latent site that belongs to an autoguide's auxiliary site.

    Pyro's autoguides compute the value of the latent site ``z`` from the auxiliary site ``z_unconstrained``.
    """
    return auxiliary.removesuffix("_unconstrained")


def _check_beta(beta: object) -> Beta:
    if isinstance(beta, bool) or not isinstance(beta, int | float | Tensor):
        raise TypeError(f"beta: expected a number or a tensor, got {type(beta).__name__} {beta!r}.")
    value = beta if isinstance(beta, Tensor) else torch.tensor(float(beta))
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError(f"beta: expected finite numbers of at least 0, got {beta}; use 0 to switch the KL off.")
    return beta if isinstance(beta, Tensor) else float(beta)


class ScaleKL(Messenger):
    """The handler that :func:`scale_kl` applies.

    The handler multiplies the log-probability of latent sites by beta. An autoguide's auxiliary site gets the weight of
    the latent site that is computed from it. ``infer["kl_scale"]`` of a site is the product of all weights that were
    applied to the site. ``kl_scales`` of the site's node in the trace holds the single weights. Unlike ``infer``,
    ``kl_scales`` survives ``poutine.replay``.
    """

    def __init__(self, beta: Beta, sites: Collection[str] | None = None) -> None:
        super().__init__()
        self._live = torch.zeros(())
        self.beta = beta
        self.sites = None if sites is None else frozenset([sites] if isinstance(sites, str) else sites)
        self._seen: set[str] = set()

    @property
    def beta(self) -> Beta:
        """The KL weight; it may be changed between calls."""
        return self._beta

    @beta.setter
    def beta(self, beta: Beta) -> None:
        self._beta = _check_beta(beta)
        if not isinstance(beta, Tensor):
            self._live.fill_(float(beta))

    @property
    def _factor(self) -> Beta:
        """The factor that multiplies the log-probability of a latent site.

        While a graph is captured, the factor is a tensor, which the graph reads at every training step.
        """
        if isinstance(self._beta, Tensor) or not capturing():
            return self._beta
        return self._live

    def __enter__(self) -> ScaleKL:
        self._seen.clear()
        super().__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        missing = (self.sites or frozenset()) - self._seen
        if exc_type is None and missing:
            raise ValueError(
                f"scale_kl: expected a latent site named {sorted(missing)[0]!r}, got the latent sites "
                f"{sorted(self._seen)}; name one of these in sites."
            )

    def _pyro_sample(self, msg: Message) -> None:
        if not _is_latent(msg):
            return
        self._seen.add(msg["name"])
        owner = owner_of(msg["name"]) if msg["infer"].get("is_auxiliary", False) else msg["name"]
        if self.sites is not None and owner not in self.sites:
            return
        beta = self._factor
        msg["scale"] = msg["scale"] * beta
        msg["kl_scales"] = (*msg.get("kl_scales", ()), beta)
        # Copy the dict, since the user's dict may be shared between calls.
        msg["infer"] = {**msg["infer"], "kl_scale": msg["infer"].get("kl_scale", 1.0) * beta}


@overload
def scale_kl(fn: Callable[P, T], beta: Beta = 1.0, sites: Collection[str] | None = None) -> Callable[P, T]: ...


@overload
def scale_kl(fn: None = None, beta: Beta = 1.0, sites: Collection[str] | None = None) -> ScaleKL: ...


def scale_kl(
    fn: Callable[P, T] | None = None, beta: Beta = 1.0, sites: Collection[str] | None = None
) -> Callable[P, T] | ScaleKL:
    r"""Multiply the log-probability of the latent sites of ``fn`` by :math:`\beta`.

    This weights one of the two terms of :math:`\beta\, KL(q \| p)`: :math:`\beta \log p(z)` if ``fn`` is a model,
    :math:`\beta \log q(z|x)` if it is a guide. The objective is a beta-ELBO only if model and guide have the same
    weight; the objectives of this package refuse a pair with different weights. :func:`scale_kl_pair` weights model and
    guide together. Observed sites, subsampling sites and sites marked ``infer={"auxiliary_loss": True}`` are not
    weighted. Unlike ``poutine.scale``, this handler accepts 0.

    Args:
        fn: A model or a guide.
        beta: The KL weight, at least 0: a number, a 0-dim tensor (which may be changed in place), or a tensor that
            broadcasts to the plates of the site, such as shape ``(B,)``, which gives each of B data its own weight.
        sites: Names of the latent sites to weight; None for all latent sites.

    Returns:
        A function that runs ``fn`` with the weight applied. Without ``fn``, the handler itself, which is a context
        manager.

    Raises:
        TypeError: If ``beta`` is neither a number nor a tensor.
        ValueError: If ``beta`` is negative, infinite or NaN. When the function runs: if a site in ``sites`` is missing.
    """
    handler = ScaleKL(beta, sites)
    return handler if fn is None else handler(fn)


def scale_kl_pair(
    model: Callable[P, S], guide: Callable[P, T], beta: Beta | Mapping[str, Beta]
) -> tuple[Callable[P, S], Callable[P, T]]:
    r"""Weight the KL of a Pyro model and its guide.

    The ELBO of the weighted pair is :math:`E_q[\log p(x|z)] - \sum_s \beta_s\, KL_s`, with a sum over the latent sites
    s.

    Args:
        model: A Pyro model.
        guide: Its guide.
        beta: The KL weight of all latent sites, as in :func:`scale_kl`; or a dict ``{site: beta}`` with the KL weights
            of single sites. Sites that are not in the dict keep weight 1.

    Returns:
        The pair ``(model, guide)``, both with the weight applied.

    Raises:
        TypeError: If a weight is neither a number nor a tensor.
        ValueError: If a weight is negative, infinite or NaN. When model or guide runs: if a named site is missing.

    References:
        Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", 2017, eq. 4.
    """
    if not isinstance(beta, Mapping):
        return scale_kl(model, beta), scale_kl(guide, beta)
    for site, value in beta.items():
        model, guide = scale_kl(model, value, [site]), scale_kl(guide, value, [site])
    return model, guide


def _same(ours: tuple[Beta, ...], theirs: tuple[Beta, ...]) -> bool:
    """Return True if two lists of weights have equal products."""
    if len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True)):
        return True
    one, other = (_product(betas) for betas in (ours, theirs))
    if one.dim() and other.dim() and one.shape != other.shape:
        return False
    return bool(torch.isclose(one, other, rtol=1e-6).all())


def _product(betas: tuple[Beta, ...]) -> Tensor:
    value = torch.ones((), dtype=torch.float64)
    for beta in betas:
        value = value * torch.as_tensor(beta).detach().cpu().double()
    return value


def check_kl_scales(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse KL weights that differ between model and guide.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.

    Raises:
        ValueError: If the weight of a latent site differs between model and guide, or if a latent site is computed from
            an auxiliary site with another weight.
    """
    if capturing():
        return  # model and guide were checked just before the capture
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name not in guide_trace.nodes:
            continue
        ours, theirs = site.get("kl_scales", ()), guide_trace.nodes[name].get("kl_scales", ())
        if not _same(ours, theirs):
            raise ValueError(
                f"site {name!r}: expected the same KL weight in model and guide, got {[*map(_show, ours)] or 1} in the model "
                f"and {[*map(_show, theirs)] or 1} in the guide; use scale_kl_pair(model, guide, beta)."
            )
    _check_auxiliary(model_trace, guide_trace)


def _check_auxiliary(model_trace: Trace, guide_trace: Trace) -> None:
    """Check that each auxiliary site has its latent site's KL weight."""
    latent = [n for n, s in guide_trace.nodes.items() if n in model_trace.nodes and _is_latent(s)]
    for name, site in guide_trace.nodes.items():
        if name in model_trace.nodes or site["type"] != "sample" or not site["infer"].get("is_auxiliary", False):
            continue
        for owner in [owner_of(name)] if owner_of(name) in latent else latent:
            if not _same(site.get("kl_scales", ()), guide_trace.nodes[owner].get("kl_scales", ())):
                raise ValueError(
                    f"auxiliary site {name!r}: expected the KL weight of site {owner!r}, got a different weight; give all "
                    f"sites one weight, or name the auxiliary site {owner}_unconstrained."
                )


def _show(beta: Beta) -> float | str:
    if isinstance(beta, Tensor):
        return float(beta) if beta.dim() == 0 else f"a tensor of shape {tuple(beta.shape)}"
    return beta
