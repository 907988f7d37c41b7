"""Tables of an evaluation for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from pyro_vae.evidence import BracketSummary
from pyro_vae.runs.directory import Json
from pyro_vae.runs.evaluation.scores import score_lines


def summary_table(summary: Json) -> str:
    """Return the test figures of a summary as a text table."""
    test = summary["test"]
    if "log_px" in test:
        return estimate_table(test, "Test set", summary["density"], name=summary["evidence_of"])
    return "\n".join(
        [f"Test set: {test['num_data']:,} images; a model without a bound on log p(x)", *score_lines(test)]
    )


def estimate_table(figures: Json, title: str, density: bool, cost: str | None = None, name: str = "log p(x)") -> str:
    """Return the figures of an estimate as a text table.

    Args:
        figures: The figures, from :func:`pyro_vae.runs.evaluation.summary.estimate_figures`.
        title: Name of the data.
        density: True if log p(x) is a log density.
        cost: A phrase for the work for each datum; None: the table states the number of importance samples.
        name: Name of the estimated quantity, see :func:`pyro_vae.models.protocol.evidence_name`.
    """
    px = figures["log_px"]
    kind = "log density" if density else "log probability"
    cost = cost or _samples(px, figures["num_data"])
    rows = [
        f"{title}: {figures['num_data']:,} images, {cost} each; {kind}, nats per image, higher is better",
        "                 value   error (data)   error (Monte Carlo)",
        _row("ELBO", figures["elbo"]),
        _row(name, px),
        "; ".join(_other_figures(figures, name)),
        *([_smoothed_line(px, name)] if px["smoothed"] != px["value"] else []),
        f"with probability 95 %, mean {name} of these images is above {px['lower_bound_95']:.3f}",
        _verdict(figures["num_data"], px, name),
        *score_lines(figures),
    ]
    return "\n".join(rows)


def bracket_table(means: BracketSummary, cost: str | None) -> str:
    """Return the means of a bracket as a text table.

    Args:
        means: The means of the bracket's lower and upper bounds.
        cost: A phrase for the work for each datum.
    """
    rows = [
        f"Simulated from the model: {means.num_data:,} images, {cost} each way; nats per image",
        "                 value   error (Monte Carlo)",
        f"{'lower bound':<12}{means.lower:10.3f} {_error(means.lower_mc_error):>21}",
        f"{'upper bound':<12}{means.upper:10.3f} {_error(means.upper_mc_error):>21}",
        f"gap {means.gap:.3f} (standard error over data {_error(means.gap_std_error)}); moves accepted: "
        f"{means.acceptance:.0%} forward, {means.reverse_acceptance:.0%} in reverse",
        f"with probability 95 % each, mean log p(x) of these images is above {means.lower_bound:.3f}, and below "
        f"{means.upper_bound:.3f}",
    ]
    return "\n".join(rows)


def _samples(px: Json, num_data: int) -> str:
    mean = px["draws"] / num_data
    if mean == px["num_samples"]:
        return f"{px['num_samples']:,} importance samples"
    return f"{mean:,.0f} importance samples on average, at most {px['num_samples']:,},"


def _other_figures(figures: Json, name: str) -> Iterator[str]:
    yield f"gap {_number(figures['gap'], 3)} = {name} - ELBO"
    yield f"rate {_number(figures['rate'], 3)}"
    yield f"distortion {figures['distortion']:.3f}"
    if "active_units" in figures:
        yield f"{'unknown' if figures['active_units'] is None else figures['active_units']} active units"
    if "bits_per_dim" in figures:
        yield f"{figures['bits_per_dim']:.4f} bits per pixel value"


def _smoothed_line(px: Json, name: str) -> str:
    change = px["smoothed"] - px["value"]
    return f"by Pareto-smoothed weights {name} is {px['smoothed']:.3f} ({change:+.3f}); that is no bound"


def _verdict(num_data: int, px: Json, name: str) -> str:
    """Say for how many images the Monte Carlo error can be trusted."""
    bad, (criterion, limit) = px["pareto_k_bad"], px["judged_by"]
    if not bad:
        bias = _number(px["bias"], 4)
        return (
            f"for every image {criterion} is at most {limit}: the Monte Carlo error can be trusted (bias about {bias})"
        )
    rest = px["mc_error_reliable"]
    others = "" if rest is None else f"; over the other {num_data - bad:,} it is {rest:.4f}"
    return (
        f"for {bad:,} of {num_data:,} images {criterion} is above {limit}: their {name} is likely too low and the "
        f"Monte Carlo error is not known{others}"
    )


def _number(value: float, digits: int) -> str:
    """Format a number; a zero has no minus sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _row(name: str, figure: Json) -> str:
    return f"{name:<12}{figure['value']:10.3f} {_error(figure['std_error']):>14} {_error(figure['mc_error']):>21}"


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
