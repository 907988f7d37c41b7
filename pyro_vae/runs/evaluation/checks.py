"""What a run's log p(x) alone does not tell: its gaps, its aggregate posterior, its calibration, its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.data import Inputs, Stored
from pyro_vae.lookup import lookup
from pyro_vae.models.protocol import evidence_name
from pyro_vae.system.randomness import own_randomness

#: How many images each check looks at, at most, where nothing is said.
GAPS_DATA, CHECKED_DATA, SIMULATIONS = 100, 1000, 1000

#: Figures as plain containers, a text for the terminal, and pictures by name.
Found = tuple[dict[str, Any], str, dict[str, Any]]

#: From a text that names what a model of x alone has to the same of another model.
Said = Callable[[str], str]


def wording(vae: Any, columns: Inputs) -> Said:
    """How the words of the checks, which are those of a model of x alone, are said of this one.

    All that is of a model which needs labels is given y: log p(x|y), q(z|x, y), I(x, y; z).

    Args:
        vae: The model.
        columns: What it is evaluated on.
    """
    evidence = evidence_name(vae, columns)
    joint = "log p(x, y, z)" if evidence == "log p(x, y)" else "log p(x, z|y)"
    words = {"log p(x)": evidence, "log p(x, z)": joint, "q(z|x)": "q(z|x, y)", "I(x; z)": "I(x, y; z)"}

    def said(text: str) -> str:
        for ours, theirs in words.items() if evidence != "log p(x)" else ():
            text = text.replace(ours, theirs)
        return text

    return said


def _gaps(vae: Any, data: Inputs, seed: int, **options: Any) -> evidence.Gaps:
    """Where the ELBO lies below log p(x), and whether family or encoder is to blame."""
    parts = Inputs(*data[:GAPS_DATA]).split(min(50, data.chunk))
    return evidence.Gaps.cat([evidence.gaps(vae.model, vae.guide, *part, **options) for part in parts])


def _tell_gaps(gaps: evidence.Gaps, said: Said) -> Found:
    found = gaps.summary()
    text = (
        f"Gaps over the first {found.num_data:,} images, nats, with standard errors over data: log p(x) - ELBO "
        f"{_plus(found.inference, found.inference_std_error)} = approximation "
        f"{_plus(found.approximation, found.approximation_std_error)} + amortization "
        f"{_plus(found.amortization, found.amortization_std_error)}"
    )
    return dataclasses.asdict(found), said(text), {}


def _aggregate(vae: Any, data: Inputs, seed: int, **options: Any) -> evidence.AggregatePosterior:
    """The rate taken apart: what codes say of the data, and how far all codes together are from the prior."""
    return evidence.aggregate_posterior(vae.model, vae.guide, *data[:], **options)


def _tell_aggregate(found: evidence.AggregatePosterior, said: Said) -> Found:
    figures = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    figures["marginal_kl_per_unit"] = figures.pop("kl_per_unit")
    figures = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in figures.items()}
    parts = {
        "KL(q(z) || p(z))": (found.marginal_kl, found.marginal_kl_error),
        "total correlation": (found.total_correlation, found.total_correlation_error),
        "dimension-wise KL": (found.dimension_wise_kl, found.dimension_wise_kl_error),
    }
    known = [f"{name} {_plus(value, error)}" for name, (value, error) in parts.items() if value is not None]
    return figures, said(f"{found.sentence} {'; '.join(known)} nats"), {}


def _calibration(vae: Any, data: Inputs, seed: int, **options: Any) -> evidence.Calibration:
    """Whether the guide covers what the model's own data were made from."""
    options = {"num_simulations": SIMULATIONS} | options
    return evidence.calibrate(vae.model, vae.guide, *data[:100], seed=seed, **options)


def _tell_calibration(found: evidence.Calibration, said: Said) -> Found:
    from pyro_vae.report.figures import calibration as pictures  # brings matplotlib

    figures = {
        "p_values": found.p_values,
        "failures": list(found.failures),
        "passed": found.passed,
        "coverage": [c._asdict() for c in found.coverage()],
        "num_simulations": len(found.ranks),
    }
    drawn = {"calibration": pictures.ranks(found, said), "coverage": pictures.coverage(found, said)}
    return figures, said(found.verdict()), drawn


def _predictive(vae: Any, data: Inputs, seed: int, **options: Any) -> evidence.PredictiveChecks:
    """Whether the model makes images like these; of one that takes labels, images of what it is told of these."""
    columns = data[:CHECKED_DATA]
    alone = len(columns) == 1 and callable(getattr(vae, "sample", None))
    made = evidence.replicates(vae, columns[0]) if alone else evidence.simulations(vae.model, *columns)
    return evidence.predictive_checks(columns[0], made, seed=seed, **options)


def _tell_predictive(found: evidence.PredictiveChecks, said: Said) -> Found:
    from pyro_vae.report.figures.predictive import predictive  # brings matplotlib

    figures = {"p_values": found.p_values, "failures": list(found.failures), "passed": found.passed}
    figures |= {
        "observed": dict(zip(found.names, found.observed.tolist(), strict=True)),
        "num_images": found.num_images,
    }
    return figures, said(found.table()), {"predictive": predictive(found)}


class Check(NamedTuple):
    """A check of the command line.

    Attributes:
        make: From a model, its columns, a seed and options to what is found.
        tell: From that, and the wording of the model, to figures, text and pictures.
        least: Options under which it takes as little time as it can, to see whether it suits a model.
    """

    make: Callable[..., Any]
    tell: Callable[[Any, Said], Found]
    least: dict[str, Any]


#: Checks of the command line.
CHECKS = {
    "gaps": Check(_gaps, _tell_gaps, {"steps": 1, "num_particles": 1, "num_samples": 2}),
    "aggregate": Check(_aggregate, _tell_aggregate, {"num_samples": 2}),
    "calibration": Check(_calibration, _tell_calibration, {"num_simulations": 1, "num_draws": 1}),
    "predictive": Check(_predictive, _tell_predictive, {"num_sets": 20, "level": 0.01}),
}


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is no check.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        lookup("check", name, CHECKS)


def made(name: str, vae: Any, data: Inputs, seed: int, **options: Any) -> Any:
    """What a check of :data:`CHECKS` finds, before it is told."""
    with own_randomness(seed), nullcontext() if name == "gaps" else torch.no_grad():  # gaps are refined by gradients
        return CHECKS[name].make(vae, data, seed, **options)


def diagnose(
    names: Sequence[str],
    vae: Any,
    data: Inputs | Tensor | Stored,
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

    columns = Inputs.of(data)
    stored = not isinstance(columns.parts[0], Tensor)
    held = Inputs(*columns[:10_000]) if stored else columns
    said = wording(vae, held)
    for name in names:
        try:
            found = made(name, vae, held, seed)
        except ValueError:
            if name in optional:
                continue
            raise
        figures, text, pictures = CHECKS[name].tell(found, said)
        for file, picture in pictures.items():
            write_figure(folder / f"{file}.png", picture)
        yield name, figures, text


def _plus(value: float, error: float | None) -> str:
    return f"{value:.3f}" + ("" if error is None else f" ({error:.3f})")
