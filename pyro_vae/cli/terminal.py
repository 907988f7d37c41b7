"""Terminal output: encodings, error sentences and versions."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from importlib.metadata import version
from typing import TypeVar

from pyro_vae.system import devices

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
    if (meant := devices.explain(error)) is not None:
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
    return f"pyro_vae {version('pyro-vae')} (Python {python}, torch {version('torch')}, Pyro {version('pyro-ppl')})"
