"""Fetch named data sets for use without a network.

Examples:
  python -m pyro_vae.data mnist fashion-mnist
  python -m pyro_vae.data celeba --data-dir /scratch/data
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pyro_vae.cli import command, parser
from pyro_vae.data.loading import data_folders
from pyro_vae.data.named.fileset import FileSet
from pyro_vae.data.named.registry import NAMED
from pyro_vae.data.source import Parts, Request
from pyro_vae.lookup import lookup
from pyro_vae.system.signals import Signals


@dataclass(frozen=True)
class Arguments:
    """The values of the command's flags and arguments."""

    names: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """Names of data sets: {names}."""
    data_dir: str | None = None
    """Folder of the files, in torchvision's layout;
    default: PYRO_VAE_DATA, else a cache folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that fetches data sets.

    Args:
        argv: The arguments of the command; None for ``sys.argv[1:]``.

    Returns:
        The exit code: 0, or 2 if a name is unknown or a data set is unavailable. If one data set is unavailable, the command
        still fetches the others.
    """
    return command.run("pyro_vae.data", _fetch, argv, "before all data sets were fetched.")


def _fetch(words: Sequence[str], _signals: Signals, _held: ExitStack) -> int:
    with command.input_errors():
        prog = "python -m pyro_vae.data"
        args = parser.parse(Arguments(), words, prog=prog, description=__doc__, names={"names": NAMED})
        if not args.names:
            raise ValueError(f"names: expected at least one data set, got none; choose from {', '.join(NAMED)}.")
        for name in args.names:
            lookup("data set", name, NAMED)
        code = 0
        for name in args.names:
            try:
                print(_describe(name, Request(data_folders(args.data_dir))), flush=True)
            except ValueError as error:
                print(f"pyro_vae.data: error: {error}", file=sys.stderr)
                code = 2
    return code


def _describe(name: str, request: Request) -> str:
    """Describe the splits and the folder of a data set."""
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
