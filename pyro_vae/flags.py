"""How the values of flags are read, and what --help shows of them: the string below each field of a dataclass."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing
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
