"""What the commands have in common at the terminal: how words are read, what --help shows, and letters it can print."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import typing
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import tyro

import pyro_vae
from pyro_vae import machine
from pyro_vae.flags import REGISTRY

T = TypeVar("T")

#: ASCII for what the package and its parser print.
ASCII = {
    "±": "+/-",
    "×": "x",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "•": "*",
    "→": "->",
    "∞": "inf",
    "β": "beta",
    "μ": "mu",
    "µ": "mu",
    "σ": "sigma",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "│": "|",
    **dict.fromkeys("╭╮╰╯├┤┬┴┼", "+"),
    "─": "-",
    "█": "#",
}

#: What a command answers with a sentence instead of a traceback; see :func:`sentence`.
ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)


def sentence(error: Exception, *others: type[Exception]) -> str:
    """What to tell the user of an error of ``ERRORS``.

    Args:
        error: An error of input, or one of the device.
        *others: Types that stand for a mistake of ours here unless the device is to blame.

    Raises:
        Exception: The error itself, if it is neither.
    """
    if (meant := machine.explain(error)) is not None:
        return meant
    if isinstance(error, (RuntimeError, MemoryError, *others)):
        raise error
    return str(error)


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Inside, letters that the terminal's encoding lacks are printed in ASCII; also a decorator.

    Bytes of file names that were no text come out as they were. Where whoever read the output has closed it, the process
    ends without a traceback, by the code of a broken pipe.
    """
    codecs.register_error("pyro_vae.ascii", _in_ascii)
    with contextlib.ExitStack() as after:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                after.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="pyro_vae.ascii")
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            sys.exit(BROKEN_PIPE)
        except OSError as error:
            _drop_output()
            print(f"pyro_vae: error: the output cannot be written: {error}", file=sys.stderr)
            sys.exit(1)


#: The exit code of a process that writes into a closed pipe, 128 + SIGPIPE.
BROKEN_PIPE = 141


def _drop_output() -> None:
    """Send what is still to be printed nowhere, so that Python does not fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    plain = ASCII.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or letter.encode("ascii", "backslashreplace").decode(), error.start + 1


def versions() -> str:
    """What ``--version`` prints: the package's, and those on which its figures rest."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pyro_vae {pyro_vae.__version__} (Python {python}, torch {version('torch')}, Pyro {version('pyro-ppl')})"


def parse(
    arguments: type[T], words: Sequence[str], default: T | None = None, *, prog: str, description: str | None
) -> T:
    """Read a command line.

    Args:
        arguments: A dataclass of values, or of dataclasses, of which each is a group of flags.
        words: The words.
        default: What flags that are not there stand for; None: the defaults of ``arguments``.
        prog: How the command is called.
        description: What ``--help`` says of it.

    Returns:
        The values.

    Raises:
        ValueError: If a flag is unknown or its value is not what it should be.
    """
    _refuse_unknown(arguments, words)
    said = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said), REGISTRY:
            return tyro.cli(
                arguments,
                args=_spelled_out(arguments, words),
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_sentence(said.getvalue())) from None


def _refuse_unknown(arguments: type, words: Sequence[str]) -> None:
    known = ["--help", *_flags(arguments)]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and len(flag) > 2 and flag not in known and not flag.startswith("--tyro-"):
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out."
            raise ValueError(f"unrecognized flag {flag}: expected one of those that --help shows; {hint}")


def _flags(arguments: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(arguments).items():
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint))
        else:
            words = name.replace("_", "-")
            yield from (f"--{words}", f"--no-{words}") if hint in (bool, bool | None) else (f"--{words}",)


def _spelled_out(arguments: type, words: Sequence[str]) -> list[str]:
    """``--compile`` and ``--no-compile``, where the absence of both means something else, as ``--compile=yes`` and ``=no``."""
    three = {f"--{name.replace('_', '-')}" for name in _three_way(arguments)}
    found = []
    for word in words:
        flag, no = word.replace("_", "-"), word.replace("_", "-").replace("--no-", "--", 1)
        found.append(f"{flag}=yes" if flag in three else f"{no}=no" if no in three and no != flag else word)
    return found


def _three_way(arguments: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(arguments).items():
        if dataclasses.is_dataclass(hint):
            yield from _three_way(typing.cast(type, hint))
        elif hint == bool | None:
            yield name


def _sentence(text: str) -> str:
    """What the parser says on several lines, with a title above and advice below a rule, in one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    boxed = "╭" in plain  # then the title is in the frame, else it has a rule of its own
    lines = [line.strip("│ ") for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split(r"\n[─-]+\n", "\n".join(lines).strip())
    first = " ".join(parts[0 if boxed or len(parts) == 1 else 1].split())
    first = re.sub(r"^Error parsing (.*?): ", r"\1: ", first).rstrip(".")
    first = re.sub(r"Could not find valid parse for arguments: \[(.*)\]", r"expected numbers, got \1", first)
    first = re.sub(r"^Missing value for argument '(.*?)'\..*", r"\1: expected a value, got none", first)
    return f"{first}; see --help."
