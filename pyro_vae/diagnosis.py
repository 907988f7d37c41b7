"""What a run's log p(x) alone does not tell: its gaps, its aggregate posterior, its calibration, its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.data import Columns, Stored
from pyro_vae.lookup import lookup
from pyro_vae.randomness import own_randomness

#: How many images each check looks at, at most, where nothing is said.
GAPS_DATA, CHECKED_DATA, SIMULATIONS = 100, 1000, 1000

#: Figures as plain containers, a text for the terminal, and pictures by name.
Found = tuple[dict[str, Any], str, dict[str, Any]]


def _gaps(vae: Any, data: Columns, seed: int) -> Found:
    """Where the ELBO lies below log p(x), and whether family or encoder is to blame."""
    parts = []
    with own_randomness(seed):
        for part in Columns(*data[:GAPS_DATA]).split(min(50, data.chunk)):
            parts.append(evidence.gaps(vae.model, vae.guide, *part))
    found = evidence.Gaps.cat(parts).summary()
    text = (
        f"Gaps over the first {found.num_data:,} images, nats, with standard errors over data: log p(x) - ELBO "
        f"{_plus(found.inference, found.inference_std_error)} = approximation "
        f"{_plus(found.approximation, found.approximation_std_error)} + amortization "
        f"{_plus(found.amortization, found.amortization_std_error)}"
    )
    return dataclasses.asdict(found), text, {}


def _aggregate(vae: Any, data: Columns, seed: int) -> Found:
    """The rate taken apart: what codes say of the data, and how far all codes together are from the prior."""
    with own_randomness(seed), torch.no_grad():
        found = evidence.aggregate_posterior(vae.model, vae.guide, *data[:])
    figures = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    figures["marginal_kl_per_unit"] = figures.pop("kl_per_unit")
    figures = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in figures.items()}
    parts = {
        "KL(q(z) || p(z))": (found.marginal_kl, found.marginal_kl_error),
        "total correlation": (found.total_correlation, found.total_correlation_error),
        "dimension-wise KL": (found.dimension_wise_kl, found.dimension_wise_kl_error),
    }
    known = [f"{name} {_plus(value, error)}" for name, (value, error) in parts.items() if value is not None]
    return figures, f"{found.sentence} {'; '.join(known)} nats", {}


def _calibration(vae: Any, data: Columns, seed: int) -> Found:
    """Whether the guide covers what the model's own data were made from."""
    from pyro_vae.report import calibration as pictures  # brings matplotlib

    with own_randomness(seed), torch.no_grad():
        found = evidence.calibrate(vae.model, vae.guide, *data[:100], num_simulations=SIMULATIONS, seed=seed)
    figures = {
        "p_values": found.p_values,
        "failures": list(found.failures),
        "passed": found.passed,
        "coverage": [c._asdict() for c in found.coverage()],
        "num_simulations": SIMULATIONS,
    }
    return figures, found.verdict(), {"calibration": pictures.ranks(found), "coverage": pictures.coverage(found)}


def _predictive(vae: Any, data: Columns, seed: int) -> Found:
    """Whether the model makes images like these."""
    from pyro_vae.report.predictive import predictive  # brings matplotlib

    images = data[:CHECKED_DATA][0]
    with torch.no_grad():
        found = evidence.predictive_checks(images, evidence.replicates(vae, images), seed=seed)
    figures = {"p_values": found.p_values, "failures": list(found.failures), "passed": found.passed}
    figures |= {
        "observed": dict(zip(found.names, found.observed.tolist(), strict=True)),
        "num_images": found.num_images,
    }
    return figures, found.table(), {"predictive": predictive(found)}


#: Checks of the command line.
CHECKS: dict[str, Callable[[Any, Columns, int], Found]] = {
    "gaps": _gaps,
    "aggregate": _aggregate,
    "calibration": _calibration,
    "predictive": _predictive,
}


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is no check.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        lookup("check", name, CHECKS)


def diagnose(
    names: Sequence[str],
    vae: Any,
    data: Columns | Tensor | Stored,
    seed: int,
    folder: Path,
    optional: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Make checks of a trained model, and draw their pictures.

    Args:
        names: Of :data:`CHECKS`.
        vae: The model, in evaluation.
        data: Test images, shape ``(N, *data_shape)``, or the columns that the model takes.
        seed: Seed of their draws.
        folder: Where the pictures go.
        optional: Those of these that are left out where they do not suit the model, such as one with several latent sites.

    Yields:
        Name, figures and text of each.

    Raises:
        ValueError: If a check that is not optional does not suit the model.
    """
    from pyro_vae.report.pictures import write_figure

    columns = Columns.of(data)
    stored = not isinstance(columns.parts[0], Tensor)
    held = Columns(*columns[:10_000]) if stored else columns
    for name in names:
        try:
            figures, text, pictures = CHECKS[name](vae, held, seed)
        except ValueError:
            if name in optional:
                continue
            raise
        for file, picture in pictures.items():
            write_figure(folder / f"{file}.png", picture)
        yield name, figures, text


def _plus(value: float, error: float | None) -> str:
    return f"{value:.3f}" + ("" if error is None else f" ({error:.3f})")
