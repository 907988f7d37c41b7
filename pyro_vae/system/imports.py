"""Import packages that write to the home folder or load slowly."""

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
    """Silence matplotlib's warning that its font cache is temporary.

    Matplotlib warns if it cannot write to the home folder. It then uses a temporary folder, which it removes at exit,
    so the warning can be ignored.
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
    user's cache folder. If this folder cannot be written, the import would fail. A temporary cache folder is then used.
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
    """Return True while torch's ``make_fx`` is recording operations.

    This function does not import ``make_fx``, which loads slowly.
    """
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None
