"""The house keeps its shape: sizes of files, folders and functions, and tests that mirror the tree."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.children import ROOT

PACKAGE = ROOT / "pyro_vae"
FILE_LINES, FOLDER_FILES, BODY_LINES, CLASS_LINES, ARGUMENTS = 350, 12, 50, 250, 12
P90_BODY_LINES = 20
#: Folders with one file for each figure or law.
OPEN_FOLDERS = {"report/figures", "testing/laws"}
#: Public signatures with more arguments, each a contract.
MANY_ARGUMENTS: frozenset[str] = frozenset(
    {"evidence/annealing/bidirectional.py:bidirectional", "inference/training/fit.py:fit"}
)
#: May only fall.
MOST_ANY = 126
#: Folders of tests for what crosses the tree.
CROSSING = {"laws", "cli", "runs", "user_code", "docs"}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE))


def functions():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name_of(path)}:{node.name}", node


def generated_signatures():
    """Functions whose decorator wrote their signature, with the number of arguments it shows."""
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                function = getattr(module, node.name)
                if hasattr(function, "__signature__"):
                    yield f"{name_of(path)}:{node.name}", len(inspect.signature(function).parameters)


def body_lines(node):
    """Lines from the first statement after the docstring to the last."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_file_is_long():
    long = {name_of(path): count for path in FILES if (count := len(path.read_text().splitlines())) > FILE_LINES}
    assert not long


def test_no_folder_is_full():
    """Command files at the top level, ``__main__`` and ``__init__`` do not count."""
    commands = {"train.py", "evaluate.py"}
    folders = {}
    for path in FILES:
        if path.name not in ("__init__.py", "__main__.py") and name_of(path) not in commands:
            folders.setdefault(str(path.parent.relative_to(PACKAGE)), []).append(path.name)
    assert not {name: len(files) for name, files in folders.items() if len(files) > FOLDER_FILES}.keys() - OPEN_FOLDERS


def test_no_body_or_class_is_long():
    bodies = {name: body_lines(node) for name, node in functions()}
    assert not {name: count for name, count in bodies.items() if count > BODY_LINES}
    assert statistics.quantiles(bodies.values(), n=10)[-1] <= P90_BODY_LINES
    classes = {
        f"{name_of(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert not {name: count for name, count in classes.items() if count > CLASS_LINES}


def test_few_arguments():
    counts = {
        name: len(a.posonlyargs + a.args + a.kwonlyargs) - (bool(a.args) and a.args[0].arg in ("self", "cls"))
        for name, node in functions()
        for a in [node.args]
    } | dict(generated_signatures())
    assert {name for name, count in counts.items() if count > ARGUMENTS} == MANY_ARGUMENTS


def test_any_becomes_rarer():
    count = sum(len(re.findall(r"\bAny\b", path.read_text(encoding="utf-8"))) for path in FILES)
    assert count <= MOST_ANY


def test_the_tests_mirror_the_tree():
    folders = {str(path.parent.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name for name in folders if not (PACKAGE / name).is_dir() and name.split("/")[0] not in CROSSING}


def test_every_layer_is_named_in_the_contracts():
    """A top-level module that no contract names would be free to import anything."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert len(contracts) == 5
    assert all(c["exhaustive"] for c in contracts if c["type"] == "layers")


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path):
    """A line of .gitignore that is not anchored would hide a folder of the package from the wheel."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("pyro_vae/")}
    tracked = subprocess.run(["git", "ls-files", "pyro_vae"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert held == {*tracked.stdout.split()}
