"""The table of the training options in docs/training.md, made from the code: ``python -m tests.docs.options_table``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterator

from pyro_vae.cli.train_arguments import NAMES
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.runs.config import DataConfig, TrainConfig


def help_texts(cls: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and its bases."""
    texts = {}
    for base in reversed(cls.__mro__[:-1]):
        (node,) = ast.parse(inspect.getsource(base)).body
        for field, below in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[field.target.id] = " ".join(below.value.value.split())
    return texts


def rows() -> Iterator[str]:
    """The lines of the table."""
    texts, command = help_texts(FitOptions), dataclasses.asdict(DataConfig()) | dataclasses.asdict(TrainConfig())
    yield "| option of `fit` | flag | default of `fit` | default of the command | |"
    yield "|---|---|---|---|---|"
    for f in dataclasses.fields(FitOptions):
        flag, text = f"--{f.name.replace('_', '-')}", texts[f.name].replace("{names}", ", ".join(NAMES.get(f.name, ())))
        yield f"| `{f.name}` | `{flag}` | {shown(f.default)} | {shown(command[f.name])} | {text} |"


def shown(default: object) -> str:
    return "" if default is None else f"`{default}`"


if __name__ == "__main__":
    print(*rows(), sep="\n")
