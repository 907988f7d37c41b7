r"""Poutine handlers that weight the KL of any Pyro model and guide.

In :math:`\mathcal L_\beta = E_q[\log p(x|z)] - \beta\, KL(q(z|x) \| p(z))` the weight stands on the latent sites, on
**both** sides: on log p(z) in the model and on log q(z|x) in the guide. :func:`scale_kl_pair` puts it on both.
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
    """Return True for a latent sample site that enters the bound."""
    return (
        msg["type"] == "sample"
        and not msg["is_observed"]
        and type(msg["fn"]).__name__ != "_Subsample"
        and not msg["infer"].get("auxiliary_loss", False)
    )


def owner_of(auxiliary: str) -> str:
    """Return the latent site of an autoguide's auxiliary site.

    Pyro's autoguides compute the value of ``z`` from ``z_unconstrained``.
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
    """The handler behind :func:`scale_kl`.

    It multiplies the log-probability of latent sites by beta, and of an autoguide's auxiliary site with the latent site
    that is computed from it. Each site carries the product of all such factors as ``infer["kl_scale"]``. The trace's node
    also carries them one by one, as ``kl_scales``, which unlike ``infer`` survives ``poutine.replay``.
    """

    def __init__(self, beta: Beta, sites: Collection[str] | None = None) -> None:
        super().__init__()
        self._live = torch.zeros(())
        self.beta = beta
        self.sites = None if sites is None else frozenset([sites] if isinstance(sites, str) else sites)
        self._seen: set[str] = set()

    @property
    def beta(self) -> Beta:
        """The weight; it may be set between calls."""
        return self._beta

    @beta.setter
    def beta(self, beta: Beta) -> None:
        self._beta = _check_beta(beta)
        if not isinstance(beta, Tensor):
            self._live.fill_(float(beta))

    @property
    def _factor(self) -> Beta:
        """The factor of the log-probability; in a capture, a tensor.

        The graph reads it at every step.
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
        # A new dict: the user's may be shared between calls.
        msg["infer"] = {**msg["infer"], "kl_scale": msg["infer"].get("kl_scale", 1.0) * beta}


@overload
def scale_kl(fn: Callable[P, T], beta: Beta = 1.0, sites: Collection[str] | None = None) -> Callable[P, T]: ...


@overload
def scale_kl(fn: None = None, beta: Beta = 1.0, sites: Collection[str] | None = None) -> ScaleKL: ...


def scale_kl(
    fn: Callable[P, T] | None = None, beta: Beta = 1.0, sites: Collection[str] | None = None
) -> Callable[P, T] | ScaleKL:
    r"""Multiply the log-probability of the latent sites of ``fn`` by :math:`\beta`.

    One side of :math:`\beta\, KL(q \| p)`: the model's side is :math:`\beta \log p(z)`, the guide's
    :math:`\beta \log q(z|x)`. Unless both sides have the same weight, the objective is no beta-ELBO, and the objectives of
    this package refuse it; :func:`scale_kl_pair` weights both. Observed sites, subsampling sites and sites marked
    ``infer={"auxiliary_loss": True}`` are left alone. Unlike ``poutine.scale``, it takes 0.

    Args:
        fn: A model or a guide.
        beta: The weight, at least 0: a number, a 0-dim tensor (a change in place takes effect), or a tensor that broadcasts
            to the plates of the site, such as shape ``(B,)``, one weight for each datum.
        sites: Names of the sites to weight; None for all latent sites.

    Returns:
        The same function with the weight applied; without ``fn``, the handler, a context manager.

    Raises:
        ValueError: If ``beta`` is negative, infinite or NaN; when called, if a site of ``sites`` is missing.
    """
    handler = ScaleKL(beta, sites)
    return handler if fn is None else handler(fn)


def scale_kl_pair(
    model: Callable[P, S], guide: Callable[P, T], beta: Beta | Mapping[str, Beta]
) -> tuple[Callable[P, S], Callable[P, T]]:
    r"""Weight the KL of any model and guide.

    The ELBO of the pair is :math:`E_q[\log p(x|z)] - \sum_s \beta_s\, KL_s`.

    Args:
        model: A Pyro model.
        guide: Its guide.
        beta: The weight of the KL, as in :func:`scale_kl`, or one for each site, ``{site: beta}``; other sites keep weight 1.

    Returns:
        ``(model, guide)`` with the weight on both sides.

    Raises:
        ValueError: If a weight is negative, infinite or NaN; when called, if a named site is missing on either side.

    References:
        Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", 2017, eq. 4.
    """
    if not isinstance(beta, Mapping):
        return scale_kl(model, beta), scale_kl(guide, beta)
    for site, value in beta.items():
        model, guide = scale_kl(model, value, [site]), scale_kl(guide, value, [site])
    return model, guide


def _same(ours: tuple[Beta, ...], theirs: tuple[Beta, ...]) -> bool:
    """Return True if the products of two lists of weights agree."""
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
    """Refuse a KL weight that stands on one side only.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.

    Raises:
        ValueError: If the weights of a latent site differ between model and guide, or those of an auxiliary site from those
            of the sites computed from it.
    """
    if capturing():
        return  # the pair has just been run and checked
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name not in guide_trace.nodes:
            continue
        ours, theirs = site.get("kl_scales", ()), guide_trace.nodes[name].get("kl_scales", ())
        if not _same(ours, theirs):
            raise ValueError(
                f"site {name!r}: expected the same KL weight on both sides, got {[*map(_show, ours)] or 1} in the model "
                f"and {[*map(_show, theirs)] or 1} in the guide; use scale_kl_pair(model, guide, beta)."
            )
    _check_auxiliary(model_trace, guide_trace)


def _check_auxiliary(model_trace: Trace, guide_trace: Trace) -> None:
    """Check that an auxiliary site has the weight of its latent sites."""
    latent = [n for n, s in guide_trace.nodes.items() if n in model_trace.nodes and _is_latent(s)]
    for name, site in guide_trace.nodes.items():
        if name in model_trace.nodes or site["type"] != "sample" or not site["infer"].get("is_auxiliary", False):
            continue
        for owner in [owner_of(name)] if owner_of(name) in latent else latent:
            if not _same(site.get("kl_scales", ()), guide_trace.nodes[owner].get("kl_scales", ())):
                raise ValueError(
                    f"auxiliary site {name!r}: expected the KL weight of site {owner!r}, got another; give all sites one "
                    f"weight, or name the auxiliary site {owner}_unconstrained."
                )


def _show(beta: Beta) -> float | str:
    if isinstance(beta, Tensor):
        return float(beta) if beta.dim() == 0 else f"a tensor of shape {tuple(beta.shape)}"
    return beta
