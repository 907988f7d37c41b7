"""The version of the package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the installed version; ``"not installed"`` if run from a clone."""
    try:
        return version("pyro-vae")
    except PackageNotFoundError:
        return "not installed"
