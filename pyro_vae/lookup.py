"""Find a constructor by its name, and say what would have been right when there is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in ``known``: it lists the known names and the nearest.

    Args:
        kind: What the name stands for, such as ``"objective"``.
        name: The name that came.
        known: The names that would have been right.

    Returns:
        A ``ValueError`` to be raised by the caller.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of these."
    return ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(names)}; {hint}")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """``table[name]``, or a ``ValueError`` that lists the known names and the nearest."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
