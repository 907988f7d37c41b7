"""Imports that need care: of packages that keep files in a home where there may be none, and of what takes a while."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def no_word_of_caches() -> Iterator[None]:
    """While matplotlib is imported inside, it does not warn that it keeps its font cache in a temporary folder.

    It does so where the home cannot be written, removes the folder at the end, and is none the worse for it.
    """
    logger = logging.getLogger("matplotlib")
    logger.addFilter(_not_of_caches)
    try:
        yield
    finally:
        logger.removeFilter(_not_of_caches)


def _not_of_caches(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("mkdir -p failed", "Matplotlib created a temporary cache directory"))


def import_arviz() -> Any:
    """ArviZ, without its announcement of version 1.0, and where it cannot note in a home that it has made it.

    ArviZ 0.23 writes the day of that announcement into the user's cache folder, and fails to be imported where it
    cannot.
    """
    with warnings.catch_warnings(), no_word_of_caches():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            import arviz
        except OSError:
            with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
                import arviz
    return arviz


def capturing() -> bool:
    """Whether ``make_fx`` is writing down what runs, found out without importing it, which takes a while."""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None
