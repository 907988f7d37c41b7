"""Predictive checks: are the images that a model makes like the ones it is a model of?"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.evidence.criticism.image_statistics import ImageStatistics, image_statistics
from pyro_vae.evidence.simulation import simulate
from pyro_vae.models.vae import VAE
from pyro_vae.system.randomness import own_randomness

#: Bands of spatial frequency, as shares of the Nyquist one, whose power is checked.
BANDS = (("coarse", 0.0, 0.25), ("middle", 0.25, 0.5), ("fine", 0.5, 1.0))

#: Images made in one call of the decoder.
CHUNK = 1000


@dataclass(frozen=True)
class PredictiveChecks:
    r"""Statistics T of a set of N images, and of R sets that the model made; each of shape ``(C,)`` or ``(R, C)``, float64.

    Attributes:
        names: The C statistics.
        observed: T of the images.
        replicated: T of each simulated set.
        observed_spectrum: Mean power at each spatial frequency, shape ``(F,)``.
        replicated_spectrum: That of each simulated set, shape ``(R, F)``.
        num_images: N.
        level: The chance that a true model passes.
    """

    names: tuple[str, ...]
    observed: Tensor
    replicated: Tensor
    observed_spectrum: Tensor
    replicated_spectrum: Tensor
    num_images: int
    level: float = 0.95

    @property
    def p_values(self) -> dict[str, float]:
        r"""Bayesian p-values :math:`P(T(x^{rep}) \ge T(x))`, near 0 or 1 where the model does not make such images.

        Ties count half, and half a set is added at each end: of R sets, between 1 / (2 (R + 1)) and 1 less that.
        """
        above = (self.replicated > self.observed).double().sum(0)
        ties = (self.replicated == self.observed).double().sum(0)
        p = (above + ties / 2 + 0.5) / (len(self.replicated) + 1)
        return dict(zip(self.names, p.tolist(), strict=True))

    @property
    def two_sided(self) -> dict[str, float]:
        """Two-sided p-values, (1 + the sets at least as far out on the nearer side) * 2 / (R + 1): of level a at most a."""
        high = (self.replicated >= self.observed).double().sum(0)
        low = (self.replicated <= self.observed).double().sum(0)
        p = (2 * (torch.minimum(high, low) + 1) / (len(self.replicated) + 1)).clamp(max=1)
        return dict(zip(self.names, p.tolist(), strict=True))

    @property
    def failures(self) -> tuple[str, ...]:
        """Statistics whose two-sided p-value is too small for chance, the worst first (Holm)."""
        two_sided = self.two_sided
        order = sorted(two_sided, key=lambda name: two_sided[name])
        kept = (k for k, name in enumerate(order) if two_sided[name] > (1 - self.level) / (len(order) - k))
        return tuple(order[: next(kept, len(order))])

    @property
    def passed(self) -> bool:
        """Whether the images could be the model's, by these statistics."""
        return not self.failures

    def table(self) -> str:
        """The checks as text: a row a statistic, then the result in a sentence."""
        size = f"{self.num_images:,} images against {len(self.replicated):,} simulated sets of as many"
        lines = [size, f"{'':<22}{'observed':>10}{'simulated: mean':>17}{'and sd':>10}{'p':>8}"]
        p = self.p_values
        for name, t, sets in zip(self.names, self.observed.tolist(), self.replicated.T, strict=True):
            lines.append(f"{name:<22}{t:10.4g}{float(sets.mean()):17.4g}{float(sets.std()):10.2g}{p[name]:8.3f}")
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """The result in a plain sentence."""
        if self.passed:
            return "by these statistics the images could be the model's"
        shown = [f"{name} (p {self.p_values[name]:.3f})" for name in self.failures]
        return f"the model makes other images than these, by {', '.join(shown)}"


def predictive_checks(
    images: Tensor,
    simulated: Tensor | Callable[[], Tensor],
    *,
    num_sets: int = 300,
    threshold: float = 0.5,
    level: float = 0.95,
    seed: int | None = None,
) -> PredictiveChecks:
    r"""Check images against sets of images that a model made.

    .. math:: p = P(T(x^{rep}) \ge T(x))

    T is a number of a whole set of N images: the mean ink, the standard deviation of ink over images, the mean number of
    connected components, and the mean power of coarse, middle and fine spatial frequencies. With sets
    drawn from p(x) by a model that was not fitted to these images, p is uniform where the model is true (up to its R + 1
    steps), so that a true one passes with probability ``level``. With sets drawn given the same images, by z ~ q(z|x),
    the data are used twice: p then crowds around 1/2, and passing says little; failing says as much.

    Args:
        images: Shape ``(N, H, W)`` or ``(N, C, H, W)``, N at least 2.
        simulated: R sets of N images, shape ``(R, *images.shape)``; or a function that makes one such set at each call, such
            as :func:`replicates` and :func:`simulations` return, which needs memory for one.
        num_sets: R, where a function makes the sets.
        threshold: A pixel above it is ink, for the components.
        level: The chance that a true model passes.
        seed: Seed of the draws of a function, the caller's generator being left as it was; None: draws come from that.

    Returns:
        The statistics and their p-values.

    Raises:
        ValueError: If shapes do not match, there are too few images, or too few sets for any p-value to be small enough.

    References:
        Gelman, Meng, Stern, "Posterior Predictive Assessment of Model Fitness via Realized Discrepancies", 1996, eq. 4; Meng,
        "Posterior Predictive p-Values", 1994, for the crowding.
    """
    if images.dim() not in (3, 4) or len(images) < 2:
        raise ValueError(
            f"images: expected shape (N, H, W) or (N, C, H, W) with N of at least 2, got {tuple(images.shape)}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected between 0 and 1, got {level}.")
    count = num_sets if callable(simulated) else len(simulated)
    sets = (simulated() for _ in range(num_sets)) if callable(simulated) else iter(simulated)
    given = image_statistics(images, threshold)
    names, observed = _of_a_set(given)
    least = math.ceil(2 * len(names) / (1 - level) - 1e-9) - 1
    if count < least:
        raise ValueError(
            f"simulated: expected at least {least:,} sets, for with fewer nothing can fail at level {level}, got {count:,}; "
            "make more, of fewer images each."
        )
    with nullcontext() if seed is None else own_randomness(seed):
        found = [image_statistics(_of_shape(made, images), threshold) for made in sets]
    return PredictiveChecks(
        names=names,
        observed=observed,
        replicated=torch.stack([_of_a_set(part)[1] for part in found]),
        observed_spectrum=given.spectrum.mean(0),
        replicated_spectrum=torch.stack([part.spectrum.mean(0) for part in found]),
        num_images=len(images),
        level=level,
    )


def _of_shape(made: Tensor, images: Tensor) -> Tensor:
    if made.shape != images.shape:
        raise ValueError(
            f"simulated: expected sets of shape {tuple(images.shape)}, as the images have, got {tuple(made.shape)}."
        )
    return made


def _of_a_set(found: ImageStatistics) -> tuple[tuple[str, ...], Tensor]:
    """The numbers of a whole set of images, with their names."""
    values = {
        "ink": found.ink.mean(),
        "spread of ink": found.ink.std(),
        "components": found.components.mean(),
    }
    share = torch.arange(1, found.spectrum.shape[1] + 1) / found.spectrum.shape[1]
    for name, low, high in BANDS:
        band = (share > low) & (share <= high)
        if bool(band.any()):
            values[f"power, {name}"] = found.spectrum[:, band].mean()
    return tuple(values), torch.stack(list(values.values()))


def replicates(vae: VAE, images: Tensor, latents: Literal["prior", "posterior"] = "prior") -> Callable[[], Tensor]:
    """A function that makes one set of images like these at each call, for :func:`predictive_checks`.

    Args:
        vae: The model; its mode (train or eval) is the caller's business.
        images: Shape ``(N, *data_shape)``, on the model's device.
        latents: ``"prior"``: z ~ p(z), images of the model's own; ``"posterior"``: z ~ q(z|x), one for each of these images.

    Raises:
        ValueError: If ``latents`` is another word.
    """
    if latents not in ("prior", "posterior"):
        raise ValueError(f"latents: expected 'prior' or 'posterior', got {latents!r}.")
    parts = images.split(CHUNK)

    @torch.no_grad()
    def made() -> Tensor:
        if latents == "prior":
            return torch.cat([vae.sample(len(part)) for part in parts])
        return torch.cat([vae.decode(vae.encode(part).sample()).sample() for part in parts])

    return made


def simulations(model: Callable[..., Any], *args: Any) -> Callable[[], Tensor]:
    """A function that makes one set of images like these at each call, from a Pyro model of images and what it is told of them.

    Of a model that is given labels these are images of the same labels, of one whose labels are unknown images of drawn ones.

    Args:
        model: A Pyro model, see :func:`simulate`.
        *args: What it takes of each image, shapes ``(N, ...)``: the images first.

    Raises:
        ValueError: If it cannot be simulated from.
    """
    simulate(model, *args)
    parts = [tuple(arg[start : start + CHUNK] for arg in args) for start in range(0, len(args[0]), CHUNK)]

    def made() -> Tensor:
        return torch.cat([simulate(model, *part).args[0] for part in parts])

    return made
