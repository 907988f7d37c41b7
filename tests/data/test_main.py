"""The command that fetches named data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyro_vae.data.__main__ import main
from tests.data.fabricated import fabricate


def test_the_command_says_where_the_files_are(tmp_path, monkeypatch, capsys):
    for name in ("kmnist", "svhn"):
        fabricate(name, monkeypatch).put(tmp_path)
    assert main(["kmnist", "svhn", "digits", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"kmnist: 7 train, 4 test, each 1 x 28 x 28; {Path(tmp_path, 'KMNIST', 'raw')}",
        f"svhn: 7 train, 4 test, each 3 x 32 x 32; {tmp_path}",
        "digits: 1,617 train, 180 test, each 1 x 8 x 8; needs no files",
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "names: expected at least one data set, got none; choose from digits, shapes, mnist"),
        (["svnh"], "unknown data set 'svnh'"),
        (["digits", "./data.npy"], "unknown data set './data.npy'"),
    ],
)
def test_the_command_refuses_unknown_names(words, named, capsys):
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"pyro_vae.data: error: {named}")
    assert error.count("\n") == 1
