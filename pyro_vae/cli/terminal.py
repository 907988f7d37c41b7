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

from pyro_vae.system import devices

#: ASCII in place of the letters that the package prints.
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


#: Errors for which a command prints a sentence instead of a traceback, see :func:`sentence`.
ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError)


def sentence(error: Exception, *others: type[Exception]) -> str:
    """Sentence for the user about an error of ``ERRORS``.

    Args:
        error: An error of the input or of the device.
        *others: Types that mean a bug here, unless the device caused the error; as ``RuntimeError`` and ``MemoryError`` do.

    Raises:
        Exception: The error itself, if it is a bug.
    """
    if (explanation := devices.explain_device_error(error)) is not None:
        return explanation
    if isinstance(error, (RuntimeError, MemoryError, *others)):
        raise error
    return str(error)


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Print letters that the terminal's encoding lacks in ASCII; also a decorator.

    Bytes of file names that are not text are printed unchanged. If the reader of the output closes it, the process ends
    without a traceback and with the exit code of a broken pipe.
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
    """Discard buffered output, with which Python would fail again at exit."""
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
    """Text of ``--version``: the versions of the package, Python, torch and Pyro."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pyro_vae {version('pyro-vae')} (Python {python}, torch {version('torch')}, Pyro {version('pyro-ppl')})"
