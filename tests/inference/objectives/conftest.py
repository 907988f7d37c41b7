"""Fixtures of the tests of objectives."""

from __future__ import annotations

import pyro
import pytest


@pytest.fixture(params=[True, False], ids=["checked", "unchecked"])
def checked(request):
    """Run with Pyro's validation and without it, where the objectives trace in a way of their own."""
    with pyro.validation_enabled(request.param):
        yield
