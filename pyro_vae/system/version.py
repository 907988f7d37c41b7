"""The version of the package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the installed version, or ``"not installed"`` for a bare clone."""
    try:
        return version("pyro-vae")
    except PackageNotFoundError:
        return "not installed"
