"""Look up objects by name, and parse values of the form ``NAME:ARG:ARG``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Make the error for an unknown name.

    The message lists all known names, and suggests the most similar name.

    Args:
        kind: The kind of object, such as ``"objective"``.
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
    """Return the object that has a given name in a table.

    Args:
        kind: The kind of object, such as ``"objective"``, for the error.
        name: The name to look up.
        table: The objects; the keys are their names.

    Raises:
        ValueError: If the name is unknown, see :func:`unknown`.
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def parse_spec(kind: str, text: str, table: Mapping[str, T]) -> tuple[T, list[str]]:
    """Look up the object that a text ``NAME:ARG:ARG`` names.

    Args:
        kind: The kind of object, such as ``"prior"``, for the error.
        text: The text to read, such as ``"vamp:500"``.
        table: The objects by name.

    Returns:
        The object with this name, and its arguments as text, which :func:`parse_numbers` can read.

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
    """Convert the arguments of a text ``NAME:ARG:ARG`` to numbers.

    Args:
        flag: The name of the flag or option, for the error.
        text: The whole text ``NAME:ARG:ARG``, for the error.
        args: The arguments as text, from :func:`parse_spec`.
        types: The type of each argument, ``int`` or ``float``.
        form: The expected form, such as ``"linear:START:STEPS"``, for the error.
        example: A valid text, such as ``"linear:0:2000"``, for the error.
        optional: Number of arguments at the end that may be omitted.

    Returns:
        The numbers, one for each argument in ``args``.

    Raises:
        ValueError: If there are too few or too many arguments, or an argument is not a number of its type.
    """
    try:
        if not len(types) - optional <= len(args) <= len(types):
            raise ValueError
        return [read(arg) for read, arg in zip(types, args, strict=False)]
    except ValueError:
        raise ValueError(f"{flag}: expected {form}, such as {example}, got {text!r}.") from None


def part_form(name: str, cls: type) -> str:
    """Return the form in which a class is written, such as ``mix:COMPONENTS``.

    The form is ``NAME:ARG:ARG``, with the names of the arguments that the class declares.

    Args:
        name: The name of the class in its table.
        cls: The class, see :func:`parse_part`.
    """
    return ":".join([name, *map(str.upper, getattr(cls, "arguments", {}))])


def parse_part(kind: str, text: str, table: Mapping[str, type[T]]) -> tuple[type[T], list[float]]:
    """Read a class and its arguments from a text ``NAME:ARG:ARG``.

    Each class in the table declares its arguments: the class attribute ``arguments`` maps the names of the arguments to
    example values. The type of an example value, int or float, is the type of the argument.

    Args:
        kind: The kind of part, such as ``"prior"``.
        text: The text to read, such as ``"normal"``.
        table: The classes by name.

    Returns:
        The class, and the values of the arguments in ``text``. For an omitted argument, the constructor uses its
        default.

    Raises:
        ValueError: If the name is unknown, there are too many arguments, or an argument is not a number of its type.
    """
    cls, args = parse_spec(kind, text, table)
    name = text.partition(":")[0]
    examples: Mapping[str, int | float] = getattr(cls, "arguments", {})
    if args and not examples:
        raise ValueError(f"{kind} {name}: expected no arguments, got {text!r}; write {name}.")
    example = ":".join([name, *map(str, examples.values())])
    types = [type(value) for value in examples.values()]
    return cls, parse_numbers(kind, text, args, types, form=part_form(name, cls), example=example, optional=len(types))
