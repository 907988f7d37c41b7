"""Terminal output: encodings, error messages and versions."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from importlib.metadata import version

from pyro_vae.system import devices
from pyro_vae.system.version import package_version

#: ASCII replacements of the other letters that the package prints.
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
    "█": "#",
}


#: Errors for which a command prints one sentence instead of a traceback, see :func:`sentence`.
ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)


def sentence(error: Exception, *others: type[Exception]) -> str:
    """Return the message that a command prints for a user's error.

    Args:
        error: An error of a type in ``ERRORS``.
        *others: Types of errors that mean a bug, in addition to ``RuntimeError`` and ``MemoryError``. An error that the device
            caused never means a bug.

    Returns:
        The explanation if the device caused the error; otherwise the error's own message.

    Raises:
        Exception: If the error means a bug; the error itself is raised.
    """
    if (explanation := devices.explain_device_error(error)) is not None:
        return explanation
    if isinstance(error, (RuntimeError, MemoryError, *others)):
        raise error
    return str(error)


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Print letters that the terminal cannot show as ASCII text.

    The context manager is also a decorator. If a file name has bytes that are not text, these bytes are printed unchanged. If
    the process that reads the output closes the pipe, the command ends without a traceback, with the exit code of a broken
    pipe.
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


#: Exit code of a process that writes into a closed pipe, 128 + SIGPIPE.
BROKEN_PIPE = 141


def _drop_output() -> None:
    """Discard buffered output; otherwise Python would fail again at exit."""
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
    """Return the text of ``--version``: package, Python, torch and Pyro."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pyro_vae {package_version()} (Python {python}, torch {version('torch')}, Pyro {version('pyro-ppl')})"
