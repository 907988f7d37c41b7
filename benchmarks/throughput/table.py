"""The Markdown tables."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.throughput.fresh import REFERENCE, import_ratios
from benchmarks.throughput.networks import TITLES
from benchmarks.throughput.rivals import Case, words
from benchmarks.throughput.rounds import Row, Spread, best_of_ours, rate, ratio, spread
from benchmarks.throughput.targets import Measured


def ratio_words(value: Spread) -> str:
    """A ratio with its interval."""
    return f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def heading(machine: dict[str, Any], data: str, rounds: int, quick: bool) -> str:
    """What follows was measured how and on what."""
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    device = "" if machine["device"] == "cpu" else f", device {machine['device']}"
    said = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads{device}, load {machine['load']:.1f} at the "
        f"start; {machine['system']}; Python {machine['python']}, {versions}.\n\nData: {data}. Median of {rounds} interleaved "
        "rounds, in brackets the least and the greatest; a ratio is taken within each round."
    )
    smoke = "**A smoke run (--quick): the figures mean nothing.**\n\n" if quick else ""
    return f"# Throughput of training\n\n{smoke}{said}"


def rates(case: Case, rows: dict[str, Row]) -> str:
    """Images a second of one network at one batch size."""
    ours = best_of_ours(rows)
    lines = []
    for name, row in rows.items():
        if not row.ran:
            lines.append([words(name), row.note, "", ""])
            continue
        found = rate(case, row)
        over = ratio_words(ratio(rows[ours], row)) if ours not in (None, name) and ours else ""
        loss = "" if name == "floor" else f"{row.last_loss:.1f}"
        lines.append([words(name), f"{found.median:,.0f} ({found.low:,.0f} to {found.high:,.0f})", over, loss])
    head = ["", "images a second", f"{words(ours) if ours else 'ours'} over it", "last loss, nats per image"]
    return f"## {TITLES[case.network]}, batch {case.batch_size}\n\n{table(head, lines)}"


def targets(found: list[Measured], quick: bool) -> str:
    """Targets beside what was measured."""
    lines = []
    for name, batch_size, ours, least, aim, value, said in found:
        where = f"{name}, batch {batch_size}" if batch_size else name
        at = f"{least}" if aim >= least else f"at most {least}"
        lines.append([where, ours, at, f"{aim}", ratio_words(value) if value else "", "" if quick and value else said])
    return "## Targets, MLP\n\n" + table(["ours over", "ours", "at least", "aim", "measured", ""], lines)


def imports(seconds: dict[str, list[float]]) -> str:
    """Seconds of imports in fresh processes."""
    ratios = import_ratios(seconds)
    lines = [
        [f"`{name}`", ratio_words(spread(values)), "" if name == REFERENCE else ratio_words(ratios[name])]
        for name, values in seconds.items()
    ]
    return f"## Imports, fresh processes\n\n{table(['', 'seconds', f'over `{REFERENCE}`'], lines)}"


def starts(found: dict[str, list[dict[str, Any]]]) -> str:
    """Seconds to the first step, and memory."""
    lines = []
    for kind, reports in found.items():
        name, _, cache = kind.partition(" ")
        said = words(name) + (f", {cache} cache of kernels" if cache else "")
        notes = [r["note"] for r in reports if "note" in r]
        if notes:
            lines.append([said, notes[0], "", ""])
            continue
        built, first, peak = (statistics.median(r[k] for r in reports) for k in ("built", "first_step", "peak_bytes"))
        lines.append([said, f"{built:.1f}", f"{first:.1f}", f"{peak / 2**20:,.0f}"])
    head = ["", "seconds until built", "until the first step is taken", "peak memory, MiB"]
    note = "From the start of the process, imports included; the memory is that of 51 steps on 4,096 images."
    return f"## To the first step: MLP, batch 128\n\n{note}\n\n{table(head, lines)}"


def exponents(found: list[dict[str, Any]]) -> str:
    """Exponents of the cost of a step."""
    lines = [[e["axis"], words(e["rival"]), f"{e['all']:.2f}", f"{e['larger_half']:.2f}"] for e in found]
    head = ["against", "", "exponent", "over the larger half"]
    return f"## Cost of a step, MLP\n\n`scaling.png`\n\n{table(head, lines)}"
