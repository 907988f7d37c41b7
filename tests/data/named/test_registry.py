"""The table of named data sets."""

from __future__ import annotations

from pyro_vae.data import NAMED
from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.named.registry import FILES


def test_sets_in_files_carry_their_names():
    in_files = {name: source for name, source in NAMED.items() if isinstance(source, FileSet)}
    assert [*in_files.values()] == [*FILES]
    assert [*in_files] == [files.name for files in FILES]
