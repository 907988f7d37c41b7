"""Fetch named data sets, so that they are there where there is no network, and say where they are.

Examples:
  python -m pyro_vae.data mnist fashion-mnist
  python -m pyro_vae.data celeba --data-dir /scratch/data
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from pyro_vae.cli import parser, terminal
from pyro_vae.data.loading import data_folders
from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.named.registry import NAMED
from pyro_vae.data.source import Parts, Request
from pyro_vae.lookup import lookup


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Names of data sets."""
    data_dir: str | None = None
    """Folder with (or for) the files, in torchvision's layout; default: PYRO_VAE_DATA, else a cache folder."""


@terminal.any_encoding()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words of the command line; None: those of the process.

    Returns:
        The exit code: 0, or 2 if a name is unknown or a set cannot be had; the others are fetched all the same.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--version" in argv:
        print(terminal.versions())
        return 0
    code = 0
    try:
        args = parser.parse(Arguments, argv, prog="python -m pyro_vae.data", description=__doc__)
        if not args.names:
            raise ValueError(f"names: expected at least one of {', '.join(NAMED)}, got none.")
        for name in args.names:
            lookup("data set", name, NAMED)
        for name in args.names:
            try:
                print(_found(name, Request(data_folders(args.data_dir))), flush=True)
            except ValueError as error:
                code = _complain(error)
    except (ValueError, TypeError, OSError) as error:
        code = _complain(error)
    return code


def _complain(error: Exception) -> int:
    print(f"pyro_vae.data: error: {error}", file=sys.stderr)
    return 2


def _found(name: str, request: Request) -> str:
    """A set in one line."""
    source = NAMED[name]
    if not isinstance(source, FileSet):
        return f"{name}: {_sizes(source(request))}; needs no files"
    folder, parts = source.find(request)
    return f"{name}: {_sizes(parts)}; {source.place(folder)}"


def _sizes(parts: Parts) -> str:
    splits = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    sizes = ", ".join(f"{len(part.x):,} {split}" for split, part in splits.items() if part is not None)
    return f"{sizes}, each {' x '.join(map(str, parts.train.x.shape[1:]))}"


if __name__ == "__main__":
    sys.exit(main())
