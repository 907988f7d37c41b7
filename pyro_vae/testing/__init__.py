"""ELBO-bound checks for anyone's Pyro model and guide; ``pyro_vae.testing.plugin`` offers them to pytest.

Nothing heavy is imported before a check is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["LAWS", "BrokenBound", "Finding", "Report", "check_elbo_bounds"]

_NAMES = {"LAWS": "report", "BrokenBound": "report", "Finding": "report", "Report": "report"}
_NAMES["check_elbo_bounds"] = "checks"

if TYPE_CHECKING:
    from pyro_vae.testing.checks import check_elbo_bounds
    from pyro_vae.testing.report import LAWS, BrokenBound, Finding, Report


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"pyro_vae.testing.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'pyro_vae.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
