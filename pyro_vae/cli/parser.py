"""A command-line parser that is built from the fields of dataclasses.

Each field is a flag. The type of the field determines how a value is read, and the string below the field is the help text.
A field that holds a dataclass is a group of flags.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

#: Values of the flags that were given, by the name of the field.
Values = dict[str, Any]

#: Names of the types of values, in help texts and in errors.
METAVARS = {int: "N", float: "X", str: "WORD", Path: "PATH"}
#: Values that mean no, of a flag that takes none: ``--download=False``.
NO = {"false", "no", "off", "0"}
NOUNS = {int: "a whole number", float: "a number", str: "a word", Path: "a path"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter that does not break lines at hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` built from a dataclass; errors raise ``ValueError``.

    Args:
        default: A dataclass; its values are the defaults that ``--help`` shows.
        prog: The command as the user types it.
        description: The text of ``--help`` above the flags.
        names: A dict from a field to names; they replace ``{names}`` in the help text of the field.
    """

    def __init__(
        self, default: DataclassInstance, prog: str, description: str | None, names: Mapping[str, Iterable[str]]
    ) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=HelpFormatter,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # argparse would take -1e-3 for a flag
        shown = self.add_argument(
            "-h", "--help", action="store_true", default=argparse.SUPPRESS, help="Print this help and exit."
        )
        self.actions = dict.fromkeys(shown.option_strings, shown)
        self.positional: argparse.Action | None = None
        self.usage = " ".join([prog, "[-h] [OPTIONS]", *self._add_fields(self.add_argument, default, names)])

    def _add_fields(
        self, add: Callable[..., argparse.Action], default: DataclassInstance, names: Mapping[str, Iterable[str]]
    ) -> Iterator[str]:
        """Add a flag for each field; yield usage texts of positional arguments."""
        hints, helps = typing.get_type_hints(type(default)), _help_texts(type(default))
        for field in dataclasses.fields(default):
            value, name = getattr(default, field.name), field.name
            if _is_group(value):
                group = self.add_argument_group(f"{field.metadata.get('group', name)} options", inspect.getdoc(value))
                yield from self._add_fields(group.add_argument, value, names)
                continue
            text = helps.get(name, "").replace("{names}", ", ".join(names.get(name, ())))
            positional = field.metadata.get("positional", False)
            text = (text if positional else _with_default(text, value)).replace("%", "%%")
            options = {"help": text, "default": argparse.SUPPRESS} | _reading(hints[name])
            if positional:
                self.positional = add(name, **options)
                yield f"{options['metavar']} ..."
            else:
                action = add(f"--{name.replace('_', '-')}", dest=name, **options)
                self.actions |= dict.fromkeys(action.option_strings, action)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a ``ValueError``, in one sentence."""
        raise ValueError(message if message.endswith(("?", ".")) else f"{message}; see --help.")

    def read(self, words: Sequence[str]) -> Values:
        """Read command-line arguments.

        Args:
            words: The arguments. An argument to the right of ``--`` is positional, even if it starts with a dash.

        Returns:
            The values of the given flags, by field; if ``--help`` is given, also the value ``help``.

        Raises:
            ValueError: If a flag is unknown, or a value is missing or has the wrong type.
        """
        end = words.index("--") if "--" in words else len(words)
        before, after = words[:end], words[end + 1 :]
        before = [re.sub(r"^--[^=]*", lambda flag: flag[0].replace("_", "-"), word) for word in before]
        before = [part for word in before for part in self._split(word)]
        self._check_values(before)
        try:
            namespace, rest = self.parse_known_intermixed_args(before)
        except argparse.ArgumentError as error:
            self.error(f"{error.argument_name}: {error.message}")
        if rest:
            self._refuse(rest[0])
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(namespace).items()}
        if after and self.positional is None:
            self.error(f"unexpected word {after[0]!r}: expected no words after --; remove the --.")
        if after and self.positional is not None and callable(convert := self.positional.type):
            name = self.positional.dest
            values[name] = (*values.get(name, ()), *map(convert, after))
        return values

    def _is_flag(self, word: str) -> bool:
        """Return True if argparse would read ``word`` as a flag."""
        if word.partition("=")[0] in self.actions:
            return True
        number = self._negative_number_matcher.match(word)
        return len(word) > 1 and word.startswith("-") and " " not in word and not number

    def _split(self, word: str) -> tuple[str, ...]:
        """Split ``--hidden=3`` into two words, so that ``--hidden=3 4`` has two values.

        If the command has positional arguments, the word stays whole: in ``--checks=gaps RUN``, RUN is a run, not a check.
        """
        flag, equals, value = word.partition("=")
        several = flag in self.actions and self.actions[flag].nargs == "*"
        split = equals and several and self.positional is None and not self._is_flag(value)
        return (flag, value) if split else (word,)

    def _check_values(self, words: Sequence[str]) -> None:
        """Refuse missing values, and values for flags that take no value."""
        for word, following in itertools.zip_longest(words, words[1:]):
            flag, equals, value = word.partition("=")
            if (action := self.actions.get(flag)) is None:
                continue
            if action.nargs == 0 and equals:
                opposite = [other for other in action.option_strings if other != flag]
                remedy = opposite[0] if value.lower() in NO else flag
                self.error(f"{flag}: expected no value, got {value!r}; write {remedy}.")
            if action.nargs is None and not equals:
                if following is None:
                    self.error(f"{flag}: expected a value, got none")
                if self._is_flag(following):
                    hint = (
                        "see --help."
                        if following.startswith("--")
                        else f"if it is the value, write {flag}={following}."
                    )
                    self.error(f"{flag}: expected a value, got {following!r}; {hint}")

    def _refuse(self, word: str) -> NoReturn:
        """Raise the error for a word that is neither flag nor value."""
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            self.error(f"unexpected word {word!r}: expected flags and their values")
        near = difflib.get_close_matches(flag, self.actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help for all flags."
        self.error(f"unrecognized flag {flag}; {hint}")


def fill(default: T, values: Values) -> T:
    """Return a copy of a nested dataclass with some values replaced.

    The keys of ``values`` are names of fields; the fields may lie in an inner dataclass.
    """
    changes = {}
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        changes[field.name] = fill(value, values) if _is_group(value) else values.get(field.name, value)
    return dataclasses.replace(default, **changes)


def _is_group(value: object) -> TypeGuard[DataclassInstance]:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def parse(
    default: T,
    words: Sequence[str],
    *,
    prog: str,
    description: str | None,
    names: Mapping[str, Iterable[str]] = types.MappingProxyType({}),
) -> T:
    """Read a command line; with ``--help``, print the help and exit.

    Args:
        default: A dataclass with the default of each flag. A field that holds a dataclass is a group of flags.
        words: The command-line arguments.
        prog: The command as the user types it.
        description: The text of ``--help`` above the flags.
        names: A dict from a field to names; they replace ``{names}`` in the help text of the field.

    Returns:
        A copy of ``default`` that holds the values of the given flags.

    Raises:
        ValueError: If a flag is unknown, or a value has the wrong type.
    """
    parser = Parser(default, prog, description, names)
    values = parser.read(words)
    if values.pop("help", False):
        parser.print_help()
        parser.exit()
    return fill(default, values)


def _help_texts(cls: type) -> dict[str, str]:
    """Return the help texts of a dataclass: the strings below its fields.

    The fields of base classes are included. The result is empty if the source code is not available.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        for field, below in itertools.pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _with_default(text: str, value: object) -> str:
    """Return a help text with the default of the flag added.

    If the default is None or empty, return the text unchanged, since the text itself explains the default, as in
    ``"Folder; default: a new one."``.
    """
    sentence, _, meaning = text.removesuffix(".").partition("; default: ")
    if isinstance(value, bool):
        shown = "yes" if value else "no"
    elif value in (None, "", ()):
        shown = meaning or "none"
    else:
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{sentence}. (default: {shown})"


def _reading(hint: object) -> dict[str, object]:
    """Return the options of ``add_argument`` that read values of a type."""
    if typing.get_origin(hint) is tuple:
        return {"nargs": "*"} | _reading(typing.get_args(hint)[0])
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds, optional = [kind for kind in options if kind is not type(None)], type(None) in options
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction}

    def read(word: str) -> object:
        if optional and word == "None":
            return None
        for kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(word)
        raise argparse.ArgumentTypeError(f"expected {' or '.join(NOUNS[kind] for kind in kinds)}, got {word!r}")

    return {"type": read, "metavar": "|".join(METAVARS[kind] for kind in kinds)}
