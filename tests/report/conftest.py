"""Fixtures of the tests of pictures."""

from __future__ import annotations

import pytest

from pyro_vae.data import Data, load
from pyro_vae.report import pictures
from pyro_vae.report.figures import tsne


@pytest.fixture(autouse=True)
def small_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsne, "MAX_POINTS", 40)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dots for tests that do not look at the pictures: writing them takes most of the time."""
    monkeypatch.setattr(pictures, "DOTS_PER_INCH", 50)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")
