"""The examples in the docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["evidence.md", "annealing.md", "checking-models.md"]


def blocks():
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
            yield pytest.param(code, id=f"{page}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize("code", [*blocks()])
def test_an_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})
