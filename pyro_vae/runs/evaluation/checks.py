"""The checks that can be run on a trained model, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import evidence
from pyro_vae.data import Inputs, Stored
from pyro_vae.models.protocol import PyroModel, evidence_name, method_of
from pyro_vae.system.randomness import own_randomness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The largest numbers of images and simulations that the checks use by default.
GAPS_DATA, CHECKED_DATA, SIMULATIONS = 100, 1000, 1000

#: A function of a text that replaces log p(x), q(z|x) and I(x; z) by the names that fit a model.
Wording = Callable[[str], str]


def wording_for(vae: PyroModel, inputs: Inputs) -> Wording:
    """Return the function that adapts texts to a model.

    Texts are written for a model of x alone. For a model that needs labels, the function changes log p(x) to log p(x|y), q(z|x)
    to q(z|x, y), and I(x; z) to I(x, y; z).

    Args:
        vae: The model.
        inputs: The evaluation data.
    """
    evidence = evidence_name(vae, inputs)
    if evidence == "log p(x)":
        return str
    joint = "log p(x, y, z)" if evidence == "log p(x, y)" else "log p(x, z|y)"
    names = {"log p(x)": evidence, "log p(x, z)": joint, "q(z|x)": "q(z|x, y)", "I(x; z)": "I(x, y; z)"}

    def translate(text: str) -> str:
        for ours, theirs in names.items():
            text = text.replace(ours, theirs)
        return text

    return translate


class Findings(NamedTuple):
    """The result of a check in numbers, text and pictures.

    Attributes:
        figures: The numbers, in plain containers for ``summary.json``.
        text: A text for the terminal.
        pictures: Pictures, by file name without suffix.
    """

    figures: dict[str, object]
    text: str
    pictures: Mapping[str, Figure] = {}


def _gaps(vae: PyroModel, inputs: Inputs, _seed: int, **options: Any) -> evidence.Gaps:
    """Split log p(x) - ELBO into the approximation and the amortization gap."""
    parts = Inputs(*inputs[:GAPS_DATA]).split(min(50, inputs.chunk))
    return evidence.Gaps.cat([evidence.gaps(vae.model, vae.guide, *part, **options) for part in parts])


def _describe_gaps(gaps: evidence.Gaps, wording: Wording) -> Findings:
    means = gaps.summary()
    text = (
        f"Gaps over the first {means.num_data:,} images, nats, with standard errors over data: log p(x) - ELBO "
        f"{_with_error(means.inference, means.inference_std_error)} = approximation "
        f"{_with_error(means.approximation, means.approximation_std_error)} + amortization "
        f"{_with_error(means.amortization, means.amortization_std_error)}"
    )
    return Findings(dataclasses.asdict(means), wording(text))


def _aggregate(vae: PyroModel, inputs: Inputs, _seed: int, **options: Any) -> evidence.AggregatePosterior:
    """Split the rate into I(x; z) and KL(q(z) || p(z))."""
    return evidence.aggregate_posterior(vae.model, vae.guide, *inputs[:], **options)


def _describe_aggregate(result: evidence.AggregatePosterior, wording: Wording) -> Findings:
    figures = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    figures["marginal_kl_per_unit"] = figures.pop("kl_per_unit")
    figures = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in figures.items()}
    parts = {
        "KL(q(z) || p(z))": (result.marginal_kl, result.marginal_kl_error),
        "total correlation": (result.total_correlation, result.total_correlation_error),
        "dimension-wise KL": (result.dimension_wise_kl, result.dimension_wise_kl_error),
    }
    known = [f"{name} {_with_error(value, error)}" for name, (value, error) in parts.items() if value is not None]
    return Findings(figures, wording(f"{result.sentence} {'; '.join(known)} nats"))


def _calibration(vae: PyroModel, inputs: Inputs, seed: int, **options: Any) -> evidence.Calibration:
    """Compare the guide's draws with the true latents of simulated data."""
    options = {"num_simulations": SIMULATIONS} | options
    return evidence.calibrate(vae.model, vae.guide, *inputs[:100], seed=seed, **options)


def _describe_calibration(result: evidence.Calibration, wording: Wording) -> Findings:
    from pyro_vae.report.figures import calibration as pictures  # brings matplotlib

    figures = {
        "p_values": result.p_values,
        "failures": list(result.failures),
        "passed": result.passed,
        "coverage": [c._asdict() for c in result.coverage()],
        "num_simulations": len(result.ranks),
    }
    drawn = {"calibration": pictures.ranks(result, wording), "coverage": pictures.coverage(result, wording)}
    return Findings(figures, wording(result.verdict()), drawn)


def _predictive(vae: Any, inputs: Inputs, seed: int, **options: Any) -> evidence.PredictiveChecks:
    """Compare test images with images that the model draws for their labels."""
    columns = inputs[:CHECKED_DATA]
    if len(columns) == 1 and method_of(vae, "sample") is not None:
        images = evidence.replicates(vae, columns[0])
    else:
        images = evidence.simulations(vae.model, *columns)
    return evidence.predictive_checks(columns[0], images, seed=seed, **options)


def _describe_predictive(result: evidence.PredictiveChecks, wording: Wording) -> Findings:
    from pyro_vae.report.figures.predictive import predictive  # brings matplotlib

    figures = {
        "p_values": result.p_values,
        "failures": list(result.failures),
        "passed": result.passed,
        "observed": dict(zip(result.names, result.observed.tolist(), strict=True)),
        "num_images": result.num_images,
    }
    return Findings(figures, wording(result.table()), {"predictive": predictive(result)})


@dataclass(frozen=True)
class Check:
    """A check of the command line: a row of :data:`CHECKS`.

    Attributes:
        run: Function that takes a model, its inputs, a seed and options, and returns a result.
        describe: Function that takes a result and the model's wording, and returns the findings.
        least: Options that make the check cheapest, for a trial that shows if a model suits the check.
        help: A phrase for ``--help``.
        needs_gradients: True if the check optimizes something.
        routine: True if every evaluation of the whole test set runs the check.
    """

    run: Callable[..., Any]
    describe: Callable[[Any, Wording], Findings]
    least: Mapping[str, float]
    help: str
    needs_gradients: bool = False
    routine: bool = False


#: Checks of the command line by name.
CHECKS: dict[str, Check] = {
    "gaps": Check(
        _gaps,
        _describe_gaps,
        {"steps": 1, "num_particles": 1, "num_samples": 2},
        "approximation and amortization gap of 100 images",
        needs_gradients=True,
    ),
    "aggregate": Check(
        _aggregate,
        _describe_aggregate,
        {"num_samples": 2},
        "mutual information and total correlation",
        routine=True,
    ),
    "calibration": Check(
        _calibration,
        _describe_calibration,
        {"num_simulations": 1, "num_draws": 1},
        "calibration of the guide, on simulated images",
    ),
    "predictive": Check(
        _predictive,
        _describe_predictive,
        {"num_sets": 20, "level": 0.01},
        "compare the data with images of the model",
    ),
}


def run_check(name: str, vae: PyroModel, inputs: Inputs, seed: int, **options: float) -> Any:
    """Run a check; the random state of the caller does not change.

    Args:
        name: A name from :data:`CHECKS`.
        vae: The model.
        inputs: The inputs of the model.
        seed: Seed of the draws.
        **options: Options of the check.

    Returns:
        The result, to be passed to the ``describe`` function of the check.
    """
    check = CHECKS[name]
    with own_randomness(seed), nullcontext() if check.needs_gradients else torch.no_grad():
        return check.run(vae, inputs, seed, **options)


def run_checks(
    names: Sequence[str],
    vae: PyroModel,
    data: Inputs | Tensor | Stored,
    seed: int,
    folder: Path,
    optional: Sequence[str] = (),
) -> Iterator[tuple[str, Findings]]:
    """Run checks of a trained model, and write their pictures.

    Args:
        names: Names from :data:`CHECKS`.
        vae: The model, in eval mode.
        data: Test images, shape ``(N, *data_shape)``, or the inputs of the model. If the data are stored on disk, only the
            first 10,000 are used.
        seed: Seed of the draws.
        folder: The folder for the pictures.
        optional: Checks to skip if they do not suit the model.

    Yields:
        The name of each check and its findings.

    Raises:
        ValueError: If the model does not suit a check that is not optional.
    """
    from pyro_vae.report.pictures import write_figure

    inputs = Inputs.of(data)
    if not isinstance(inputs.parts[0], Tensor):
        inputs = Inputs(*inputs[:10_000])
    wording = wording_for(vae, inputs)
    for name in names:
        try:
            result = run_check(name, vae, inputs, seed)
        except ValueError:
            if name in optional:
                continue
            raise
        findings = CHECKS[name].describe(result, wording)
        for file, picture in findings.pictures.items():
            write_figure(folder / f"{file}.png", picture)
        yield name, findings


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" + ("" if error is None else f" ({error:.3f})")
