"""The command-line parser: flags from dataclasses, and their help."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from pyro_vae.cli.terminal import T

#: The rules by which tyro reads and shows them.
REGISTRY = ConstructorRegistry()


@REGISTRY.struct_rule
def _group(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The fields of a dataclass, with the string below each as its help."""
    if not (isinstance(info.type, type) and dataclasses.is_dataclass(info.type)):
        return None
    hints, helps = typing.get_type_hints(info.type, include_extras=True), _help_texts(info.type)
    fields = []
    for f in dataclasses.fields(info.type):
        default = getattr(info.default, f.name, f.default)
        if default is dataclasses.MISSING:
            default = tyro.MISSING if f.default_factory is dataclasses.MISSING else f.default_factory()
        text, said = _split_default(helps.get(f.name, ""))
        shown = tyro.conf.arg(
            metavar=_several(hints[f.name]), help_behavior_hint=functools.partial(_default_hint, said)
        )
        typ: Any = Annotated[hints[f.name], shown]
        fields.append(StructFieldSpec(name=f.name, type=typ, default=default, helptext=text or None))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))


def _help_texts(cls: type) -> dict[str, str]:
    """The strings below the fields of a dataclass; none where its source is not there."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return {}
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _split_default(text: str) -> tuple[str, str]:
    """What a help says of a flag, and of what its absence stands for: ``"Folder; default: a new one."``."""
    found = re.fullmatch(r"(.*); default: (.*)\.", text, re.DOTALL)
    return (f"{found[1]}.", found[2]) if found else (text, "none")


def _default_hint(said: str, default: str) -> str:
    words = {"True": "yes", "False": "no", "None": said, "": said, "''": said}.get(default, default)
    return f"(default: {words})"


def _several(hint: Any) -> str | None:
    """How a flag's values are shown where there may be any number of them."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is not tuple:
        return None
    kind = typing.get_args(hint)[0]
    if typing.get_origin(kind) is typing.Literal:
        return f"{{{','.join(typing.get_args(kind))}}} ..."
    return {int: "N ...", float: "X ...", str: "WORD ..."}.get(kind, "PATH ...")


@REGISTRY.primitive_rule
def _value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type is int:
        return _spec(int, "N", "a whole number")
    if info.type is float:
        return _spec(float, "X", "a number")
    if info.type is str:
        return _spec(str, "WORD", "a word")
    return None


def _spec(make: type[Any], metavar: str, expected: str) -> PrimitiveConstructorSpec[Any]:
    def read(words: list[str]) -> Any:
        try:
            return make(words[0])
        except ValueError:
            raise ValueError(f"expected {expected}, got {words[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, make) or (make is float and isinstance(value, int)),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``X | None`` is read and shown as X is; the word None stands for none."""
    options = [t for t in typing.get_args(info.type) if t is not type(None)]
    if options == [bool]:
        return _yes_or_no()
    if len(options) != 1 or type(None) not in typing.get_args(info.type):
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(options[0], info.markers))
    if not isinstance(inner, PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        inner,
        instance_from_str=lambda words: None if words == ["None"] else inner.instance_from_str(words),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else inner.str_from_instance(value),
    )


def _yes_or_no() -> PrimitiveConstructorSpec[Any]:
    """A flag whose absence is neither yes nor no: ``--compile``, ``--no-compile``; see ``console.parse``."""
    words = {"yes": True, "no": False, "None": None}

    def read(given: list[str]) -> bool | None:
        if given[0] not in words:
            raise ValueError(f"expected yes or no, got {given[0]!r}")
        return words[given[0]]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="[=yes|no]",
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: [next(word for word, meaning in words.items() if meaning is value)],
    )


def parse(
    arguments: type[T], words: Sequence[str], default: T | None = None, *, prog: str, description: str | None
) -> T:
    """Read a command line.

    Args:
        arguments: A dataclass of values, or of dataclasses, of which each is a group of flags.
        words: The words.
        default: What flags that are not there stand for; None: the defaults of ``arguments``.
        prog: How the command is called.
        description: What ``--help`` says of it.

    Returns:
        The values.

    Raises:
        ValueError: If a flag is unknown or its value is not what it should be.
    """
    _refuse_unknown(arguments, words)
    said = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said), REGISTRY:
            return tyro.cli(
                arguments,
                args=_spelled_out(arguments, words),
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_sentence(said.getvalue())) from None


def _refuse_unknown(arguments: type, words: Sequence[str]) -> None:
    known = ["--help", *_flags(arguments)]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and len(flag) > 2 and flag not in known and not flag.startswith("--tyro-"):
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out."
            raise ValueError(f"unrecognized flag {flag}: expected one of those that --help shows; {hint}")


def _flags(arguments: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(arguments).items():
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint))
        else:
            words = name.replace("_", "-")
            yield from (f"--{words}", f"--no-{words}") if hint in (bool, bool | None) else (f"--{words}",)


def _spelled_out(arguments: type, words: Sequence[str]) -> list[str]:
    """``--compile`` and ``--no-compile``, where the absence of both means something else, as ``--compile=yes`` and ``=no``."""
    three = {f"--{name.replace('_', '-')}" for name in _three_way(arguments)}
    found = []
    for word in words:
        flag, no = word.replace("_", "-"), word.replace("_", "-").replace("--no-", "--", 1)
        found.append(f"{flag}=yes" if flag in three else f"{no}=no" if no in three and no != flag else word)
    return found


def _three_way(arguments: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(arguments).items():
        if dataclasses.is_dataclass(hint):
            yield from _three_way(typing.cast(type, hint))
        elif hint == bool | None:
            yield name


def _sentence(text: str) -> str:
    """What the parser says on several lines, with a title above and advice below a rule, in one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    boxed = "╭" in plain  # then the title is in the frame, else it has a rule of its own
    lines = [line.strip("│ ") for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split(r"\n[─-]+\n", "\n".join(lines).strip())
    first = " ".join(parts[0 if boxed or len(parts) == 1 else 1].split())
    first = re.sub(r"^Error parsing (.*?): ", r"\1: ", first).rstrip(".")
    first = re.sub(r"Could not find valid parse for arguments: \[(.*)\]", r"expected numbers, got \1", first)
    first = re.sub(r"^Missing value for argument '(.*?)'\..*", r"\1: expected a value, got none", first)
    return f"{first}; see --help."
