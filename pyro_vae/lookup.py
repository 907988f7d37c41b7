"""Objects by name, and specs ``NAME:ARG:ARG`` of flags and options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Make the error for an unknown name.

    It lists the known names and the nearest.

    Args:
        kind: The kind of thing that has a name, such as ``"objective"``.
        name: The unknown name.
        known: The known names.

    Returns:
        A ``ValueError`` for the caller to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of these."
    return ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(names)}; {hint}")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return ``table[name]``.

    Raises:
        ValueError: If the name is unknown, see :func:`unknown`.
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def parse_spec(kind: str, text: str, table: Mapping[str, T]) -> tuple[T, list[str]]:
    """Read ``NAME:ARG:ARG``.

    Args:
        kind: The kind of thing that has a name, such as ``"prior"``.
        text: The spec, such as ``"vamp:500"``.
        table: The things by name.

    Returns:
        The thing of this name, and its arguments as text; :func:`parse_numbers` reads them.

    Raises:
        ValueError: If the name is unknown, see :func:`unknown`.
    """
    name, *args = text.split(":")
    return lookup(kind, name, table), args


def parse_numbers(
    flag: str,
    text: str,
    args: Sequence[str],
    types: Sequence[type[int] | type[float]],
    *,
    form: str,
    example: str,
    optional: int = 0,
) -> list[float]:
    """Read the arguments of a spec as numbers.

    Args:
        flag: The name of the flag or option, for the error.
        text: The whole text, for the error.
        args: The arguments.
        types: ``int`` or ``float`` for each argument.
        form: The expected form, such as ``"linear:START:STEPS"``, for the error.
        example: A right spec, such as ``"linear:0:2000"``, for the error.
        optional: How many of the last arguments may be left out.

    Returns:
        The numbers, one for each of ``args``.

    Raises:
        ValueError: If an argument is missing, superfluous or no number of its type.
    """
    try:
        if not len(types) - optional <= len(args) <= len(types):
            raise ValueError
        return [read(arg) for read, arg in zip(types, args, strict=False)]
    except ValueError:
        raise ValueError(f"{flag}: expected {form}, such as {example}, got {text!r}.") from None


def parse_part(kind: str, text: str, table: Mapping[str, type[T]]) -> tuple[type[T], list[float]]:
    """Read ``NAME:ARG:ARG`` for a class that declares its arguments.

    ``arguments`` maps their names to example values, whose types are theirs.

    Args:
        kind: The kind of part, such as ``"prior"``.
        text: The spec, such as ``"normal"``.
        table: The classes by name.

    Returns:
        The class, and the values of the arguments that are given; the others have the constructor's defaults.

    Raises:
        ValueError: If the name is unknown, or an argument is superfluous or no number of its type.
    """
    cls, args = parse_spec(kind, text, table)
    name = text.partition(":")[0]
    examples: Mapping[str, int | float] = getattr(cls, "arguments", {})
    if args and not examples:
        raise ValueError(f"{kind} {name}: expected no arguments, got {text!r}; write {name}.")
    form = ":".join([name, *map(str.upper, examples)])
    example = ":".join([name, *map(str, examples.values())])
    types = [type(value) for value in examples.values()]
    return cls, parse_numbers(kind, text, args, types, form=form, example=example, optional=len(types))
