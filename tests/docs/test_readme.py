"""The README's Python runs, prints what is quoted, and draws."""

from __future__ import annotations

import re

import torch

from tests.children import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_six_lines_print_what_is_quoted_and_end_in_a_picture(tmp_path, monkeypatch, capsys):
    """Within 0.1 nats: processors round differently, and training goes on from there."""
    code, quoted = re.search(r"```python\n(.*?)```.*?```\n(.*?)```", README, re.S).groups()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()[-1]
    expected = quoted.strip().splitlines()[-1]
    assert re.sub(r"[\d.]+", "", printed) == re.sub(r"[\d.]+", "", expected)
    for number, other in zip(re.findall(r"\d+\.\d+", printed), re.findall(r"\d+\.\d+", expected), strict=True):
        assert abs(float(number) - float(other)) < 0.1, (printed, expected)
    assert (tmp_path / "pictures" / "grid.png").stat().st_size > 10_000


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\b(MNIST[A-Z]+|OUTPUT|TODO)\b", README)
