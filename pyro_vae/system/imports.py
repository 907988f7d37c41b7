"""Imports of packages that write to the home, or take a while."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch


@contextmanager
def quiet_font_cache() -> Iterator[None]:
    """Silence matplotlib's warning about a temporary font cache.

    It does so where the home cannot be written. That does no harm, and it removes the folder at the end.
    """
    logger = logging.getLogger("matplotlib")
    logger.addFilter(_not_about_caches)
    try:
        yield
    finally:
        logger.removeFilter(_not_about_caches)


def _not_about_caches(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("mkdir -p failed", "Matplotlib created a temporary cache directory"))


def import_arviz() -> ModuleType:
    """Import ArviZ, even where the home cannot be written.

    Its announcement of version 1.0 is silenced.

    ArviZ 0.23 writes the day of that announcement to the user's cache folder, and cannot be imported where that fails.
    """
    with warnings.catch_warnings(), quiet_font_cache():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            import arviz
        except OSError:
            with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
                import arviz
    return arviz


def capturing() -> bool:
    """Return True while ``make_fx`` records operations.

    It does not import ``make_fx``, which takes a while.
    """
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None
