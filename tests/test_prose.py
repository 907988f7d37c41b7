"""Docstrings and messages keep the rules of plain English that a program can check."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import ROOT

PACKAGE = ROOT / "pyro_vae"
OPENINGS = ("What", "How", "Whether", "Which")
PHRASES = re.compile(r"\b(of which|mend|such as are|that is none|, save)\b")
MOST_WORDS = {"first line": 12, "message": 30}
RAISED = {"warn", "print"}  # besides the names that end in Error or Warning

#: Files whose prose is still to be rewritten. The list may only shrink.
TODO: frozenset[str] = frozenset()


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, and of each string below a field of a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if (text := ast.get_docstring(node)) is not None:
                yield getattr(node, "lineno", 1), text
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                        yield below.lineno, below.value.value


def text_of(node: ast.AST) -> str:
    """The words of a string expression; a value that is filled in counts as one."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ""


def called(node: ast.Call) -> str:
    """The name of the function that is called, without its module or object."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each string that is raised or warned, also by way of a function of the same file."""
    makers = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            if called(node) in RAISED or called(node).endswith(("Error", "Warning")):
                yield node.lineno, text_of(node.args[0])
                makers |= {called(part) for part in ast.walk(node.args[0]) if isinstance(part, ast.Call)}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in makers:
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    yield node.lineno, text_of(node.value)


def faults(path: Path) -> list[str]:
    """What breaks a rule in one file, each as ``LINE: RULE: TEXT``."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for line, text in docstrings(tree):
        first = text.strip().splitlines()[0] if text.strip() else ""
        if first.startswith(OPENINGS):
            found.append(f"{line}: opens with a question word: {first}")
        if len(first.split()) > MOST_WORDS["first line"]:
            found.append(f"{line}: a first line of {len(first.split())} words: {first}")
        if phrase := PHRASES.search(text):
            found.append(f"{line}: {phrase[0]!r} in a docstring: {first}")
    for line, text in messages(tree):
        if phrase := PHRASES.search(text):
            found.append(f"{line}: {phrase[0]!r} in a message: {text}")
        if len(text.split()) > MOST_WORDS["message"]:
            found.append(f"{line}: a message of {len(text.split())} words: {text}")
    return found


FILES = sorted(str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", [name for name in FILES if name not in TODO])
def test_the_prose_of_a_file_is_plain(name):
    assert not faults(ROOT / name)


def test_the_list_of_files_to_do_holds_only_files_with_faults():
    assert TODO <= {*FILES}
    assert all(faults(ROOT / name) for name in TODO)


if __name__ == "__main__":  # python -m tests.test_prose pyro_vae/evidence
    for place in sys.argv[1:] or ["pyro_vae"]:
        for file in [Path(place)] if place.endswith(".py") else sorted(Path(place).rglob("*.py")):
            print(
                *(f"{file}:{fault}" for fault in faults(file.resolve())),
                sep="\n",
                end="\n" if faults(file.resolve()) else "",
            )
