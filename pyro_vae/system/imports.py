"""Imports of packages that write to the home folder or load slowly."""

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

    Matplotlib warns if the home folder cannot be written. The warning can be ignored: matplotlib then uses a temporary
    folder, and removes this folder at exit.
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
    """Import ArviZ, even if the home folder cannot be written.

    ArviZ 0.23 announces version 1.0 in a warning, which is silenced. It also writes the day of this announcement to the
    user's cache folder. If the write fails, so does the import; a temporary cache folder is then used.
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

    The check does not import ``make_fx``, which loads slowly.
    """
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None
