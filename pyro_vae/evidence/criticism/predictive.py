"""Predictive checks: compare a set of images with simulated sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_vae.evidence.criticism.image_statistics import ImageStatistics, image_statistics
from pyro_vae.evidence.simulation import simulate
from pyro_vae.inference.program.traces import Program
from pyro_vae.models.vae import VAE
from pyro_vae.system.randomness import own_randomness

#: Bands of spatial frequency whose power is checked, as shares of the Nyquist frequency.
BANDS = (("coarse", 0.0, 0.25), ("middle", 0.25, 0.5), ("fine", 0.5, 1.0))

#: Number of images made in one call of the decoder.
CHUNK = 1000


@dataclass(frozen=True)
class PredictiveChecks:
    """Statistics of a set of N images and of R simulated sets.

    Attributes:
        names: Names of the C statistics.
        observed: Statistics of the set of images, shape ``(C,)``, float64.
        replicated: Statistics of each simulated set, shape ``(R, C)``, float64.
        observed_spectrum: Mean power of the images at each of F spatial frequencies, shape ``(F,)``.
        replicated_spectrum: Mean power of each simulated set at each frequency, shape ``(R, F)``.
        num_images: Number of images, N.
        level: Probability that a true model passes.
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
        r"""Bayesian p-values, near 0 or 1 for a wrong model.

        .. math:: p = P(T(x^{rep}) \ge T(x))

        where T(x) is a statistic of the images and :math:`T(x^{rep})` that of a simulated set. Ties count half. Half a set is
        added at each end, so p lies between 1 / (2 (R + 1)) and 1 - 1 / (2 (R + 1)) for R sets.
        """
        above = (self.replicated > self.observed).double().sum(0)
        ties = (self.replicated == self.observed).double().sum(0)
        p = (above + ties / 2 + 0.5) / (len(self.replicated) + 1)
        return dict(zip(self.names, p.tolist(), strict=True))

    @property
    def two_sided(self) -> dict[str, float]:
        """Two-sided p-value of each statistic.

        The p-value is 2 (1 + c) / (R + 1), where c is the number of simulated sets, of R, that are at least as extreme as the
        images in the direction in which the images are more extreme. For a true model, P(p <= a) is at most a.
        """
        high = (self.replicated >= self.observed).double().sum(0)
        low = (self.replicated <= self.observed).double().sum(0)
        p = (2 * (torch.minimum(high, low) + 1) / (len(self.replicated) + 1)).clamp(max=1)
        return dict(zip(self.names, p.tolist(), strict=True))

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the statistics that fail by Holm's method, the worst first."""
        two_sided = self.two_sided
        order = sorted(two_sided, key=lambda name: two_sided[name])
        kept = (k for k, name in enumerate(order) if two_sided[name] > (1 - self.level) / (len(order) - k))
        return tuple(order[: next(kept, len(order))])

    @property
    def passed(self) -> bool:
        """True if no statistic fails."""
        return not self.failures

    def table(self) -> str:
        """Return a text: a row for each statistic, then the result."""
        size = f"{self.num_images:,} images against {len(self.replicated):,} simulated sets of as many"
        lines = [size, f"{'':<22}{'observed':>10}{'simulated: mean':>17}{'and sd':>10}{'p':>8}"]
        p = self.p_values
        for name, t, sets in zip(self.names, self.observed.tolist(), self.replicated.T, strict=True):
            lines.append(f"{name:<22}{t:10.4g}{float(sets.mean()):17.4g}{float(sets.std()):10.2g}{p[name]:8.3f}")
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """Describe the result in one sentence."""
        if self.passed:
            return "these statistics of the images agree with the model"
        shown = [f"{name} (p {self.p_values[name]:.3f})" for name in self.failures]
        return f"these images differ from the model's in {', '.join(shown)}"


def predictive_checks(
    images: Tensor,
    simulated: Tensor | Callable[[], Tensor],
    *,
    num_sets: int = 300,
    threshold: float = 0.5,
    level: float = 0.95,
    seed: int | None = None,
) -> PredictiveChecks:
    r"""Compare statistics of a set of images with those of simulated sets.

    .. math:: p = P(T(x^{rep}) \ge T(x))

    where x is the set of N images, :math:`x^{rep}` a simulated set, and T a statistic of a whole set: the mean ink, the
    standard deviation of ink over images, the mean number of connected components, or the mean power at coarse, middle or fine
    spatial frequencies.

    Suppose that the model was not fitted to these images, and that R simulated sets are drawn from p(x). If the model is true,
    p is uniform (in steps of 1 / (R + 1)), and the model passes with probability ``level``. If the sets are instead drawn given
    the same images, by z ~ q(z|x), the data are used twice, and p is concentrated around 1/2. A pass then means little, but a
    failure still counts fully.

    Args:
        images: Shape ``(N, H, W)`` or ``(N, C, H, W)``, N at least 2.
        simulated: R sets of N images, shape ``(R, *images.shape)``; or a function that makes one set in each call, such as the
            result of :func:`replicates` or :func:`simulations`. With a function, only one set is in memory at a time.
        num_sets: Number of sets R, if a function makes the sets.
        threshold: A pixel above this value counts as ink when components are counted.
        level: Probability that a true model passes.
        seed: Seed of the draws that the function makes; the caller's generator stays unchanged. None: draws come from the
            caller's generator.

    Returns:
        The statistics and their p-values.

    Raises:
        ValueError: If shapes do not match, there are too few images, or there are too few sets for any p-value to fail.

    References:
        Gelman, Meng, Stern, "Posterior Predictive Assessment of Model Fitness via Realized Discrepancies", 1996, eq. 4; Meng,
        "Posterior Predictive p-Values", 1994, for the concentration of p around 1/2.
    """
    if images.dim() not in (3, 4) or len(images) < 2:
        raise ValueError(
            f"images: expected shape (N, H, W) or (N, C, H, W) with N of at least 2, got {tuple(images.shape)}; "
            "pass more images."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, such as 0.95, got {level}.")
    count = num_sets if callable(simulated) else len(simulated)
    sets = (simulated() for _ in range(num_sets)) if callable(simulated) else iter(simulated)
    observed = image_statistics(images, threshold)
    values = _set_statistics(observed)
    least = math.ceil(2 * len(values) / (1 - level) - 1e-9) - 1
    if count < least:
        raise ValueError(
            f"simulated: expected at least {least:,} sets, because with fewer no statistic can fail at level {level}, got "
            f"{count:,}; make more sets of fewer images."
        )
    with nullcontext() if seed is None else own_randomness(seed):
        replicated = [image_statistics(_check_shape(made, images), threshold) for made in sets]
    return PredictiveChecks(
        names=tuple(values),
        observed=torch.stack([*values.values()]),
        replicated=torch.stack([torch.stack([*_set_statistics(part).values()]) for part in replicated]),
        observed_spectrum=observed.spectrum.mean(0),
        replicated_spectrum=torch.stack([part.spectrum.mean(0) for part in replicated]),
        num_images=len(images),
        level=level,
    )


def _check_shape(made: Tensor, images: Tensor) -> Tensor:
    """Return the simulated set; refuse a shape that differs from the images'."""
    if made.shape != images.shape:
        raise ValueError(
            f"simulated: expected sets with the shape of the images, {tuple(images.shape)}, got {tuple(made.shape)}; simulate "
            "as many images as given."
        )
    return made


def _set_statistics(images: ImageStatistics) -> dict[str, Tensor]:
    """Compute the statistics of a whole set of images, by name."""
    values = {
        "ink": images.ink.mean(),
        "spread of ink": images.ink.std(),
        "components": images.components.mean(),
    }
    share = torch.arange(1, images.spectrum.shape[1] + 1) / images.spectrum.shape[1]
    for name, low, high in BANDS:
        band = (share > low) & (share <= high)
        if bool(band.any()):
            values[f"power, {name}"] = images.spectrum[:, band].mean()
    return values


def replicates(vae: VAE, images: Tensor, latents: Literal["prior", "posterior"] = "prior") -> Callable[[], Tensor]:
    """Make a function that draws a set of images at each call.

    Pass the function to :func:`predictive_checks`.

    Args:
        vae: The model. It draws in its current mode (train or eval).
        images: Shape ``(N, *data_shape)``, on the model's device.
        latents: ``"prior"`` draws new images with z ~ p(z); ``"posterior"`` draws one image for each given image x, with
            z ~ q(z|x).

    Returns:
        A function of no arguments, whose result has the shape of ``images``.

    Raises:
        ValueError: If ``latents`` is neither ``"prior"`` nor ``"posterior"``.
    """
    if latents not in ("prior", "posterior"):
        raise ValueError(f"latents: expected 'prior' or 'posterior', got {latents!r}.")
    parts = images.split(CHUNK)

    @torch.no_grad()
    def draw() -> Tensor:
        if latents == "prior":
            return torch.cat([vae.sample(len(part)) for part in parts])
        return torch.cat([vae.decode(vae.encode(part).sample()).sample() for part in parts])

    return draw


def simulations(model: Program, *args: Tensor) -> Callable[[], Tensor]:
    """Make a function that draws image sets from a Pyro model.

    Pass the function to :func:`predictive_checks`. If ``args`` contain labels, the drawn images have the same labels; unknown
    labels are drawn.

    Args:
        model: A Pyro model of images, see :func:`simulate`.
        *args: Arguments of the model for N images, each of shape ``(N, ...)``; the first argument is the images.

    Returns:
        A function of no arguments, whose result has the shape of the images.

    Raises:
        ValueError: If the model cannot be simulated from.
    """
    simulate(model, *args)
    parts = [tuple(arg[start : start + CHUNK] for arg in args) for start in range(0, len(args[0]), CHUNK)]

    def draw() -> Tensor:
        return torch.cat([simulate(model, *part).args[0] for part in parts])

    return draw
