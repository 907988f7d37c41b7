"""The ratios that must show on 2 cores, and what was measured."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.throughput.fresh import import_ratios
from benchmarks.throughput.rounds import Row, Spread, best_of_ours, ratio


class Target(NamedTuple):
    """Ours over a rival: at least, and what is aimed at; for the MLP."""

    rival: str
    words: str
    least: float
    aim: float
    batch_size: int = 128
    ours: str | None = None


TARGETS = [
    Target("plain", "plain PyTorch", 1.05, 1.2),
    Target("plain-compiled", "plain PyTorch + torch.compile", 0.97, 1.1),
    Target("pyro", "stock Pyro in memory", 2.0, 2.5),
    Target("pyro-unchecked", "the same, validation off", 2.0, 2.5),
    Target("pythae", "pythae", 2.5, 3.0),
    Target("pyro-tutorial", "Pyro through its DataLoader, ToTensor (tutorial)", 6.0, 8.0),
    Target("pyro-example", "Pyro through its DataLoader, tensors (example)", 6.0, 8.0),
    Target("floor", "the floor", 0.62, 0.75),
    Target("plain", "bf16 over plain float32", 1.5, 1.8, 512, "captured-bf16"),
]
IMPORT_LIMITS = (1.15, 1.05)

Measured = tuple[str, int, str, float, float, Spread | None, str]


def verdict(value: float, least: float, aim: float) -> str:
    """In a word; where the limit is above the aim, less is better."""
    sign = 1 if aim >= least else -1
    return "aim reached" if sign * value >= sign * aim else "met" if sign * value >= sign * least else "**short**"


def against(target: Target, cells: dict[tuple[str, int], dict[str, Row]]) -> Measured:
    """What was measured of one target."""
    rows = cells.get(("mlp", target.batch_size), {})
    ours = target.ours or best_of_ours(rows)
    there = ours in rows and rows[ours].ran and target.rival in rows and rows[target.rival].ran
    found = ratio(rows[ours], rows[target.rival]) if there and ours else None
    said = verdict(found.median, target.least, target.aim) if found else "not measured"
    return target.words, target.batch_size, ours or "", target.least, target.aim, found, said


def measured(cells: dict[tuple[str, int], dict[str, Row]], imports: dict[str, Any] | None) -> list[Measured]:
    """All targets, those of imports last."""
    found = [against(target, cells) for target in TARGETS]
    for words, value in (import_ratios(imports) if imports else {}).items():
        found.append(
            (
                f"`{words}` over `import torch, pyro`",
                0,
                "time",
                *IMPORT_LIMITS,
                value,
                verdict(value.median, *IMPORT_LIMITS),
            )
        )
    return found
