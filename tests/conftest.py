"""Every test starts from an empty parameter store and the same generator."""

from __future__ import annotations

import os

# Before torch is imported: two processes of two threads on two cores stall one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest

from tests.children import Nursery


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave all but every n-th cell of a table marked ``thin(n)`` to ``make test-all``, counted from the first.

    ``thin(n, by="name")`` thins the cells of each name by themselves, so that every name keeps some. The first that stays is
    one further for each name, so that the cells that stay differ in the other parameters.
    """
    tables: dict[tuple[Path, str], dict[str, list[pytest.Function]]] = {}
    for item in items:
        if item.get_closest_marker("slow") is None and (thin := item.get_closest_marker("thin")) is not None:
            assert isinstance(item, pytest.Function)
            by = thin.kwargs.get("by")
            name = str(item.callspec.params[by]) if by else ""
            tables.setdefault((item.path, item.originalname), {}).setdefault(name, []).append(item)
    for names in tables.values():
        for first, cells in enumerate(names.values()):
            for place, item in enumerate(cells):
                step = min(next(item.iter_markers("thin")).args[0], len(cells))
                if (place - first) % step:
                    item.add_marker("slow")


@pytest.fixture(autouse=True)
def clean_pyro() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with MNIST, for the tests that need it."""
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("PYRO_VAE_TEST_DATA", beside))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("MNIST is not here: name its folder by PYRO_VAE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A process that has imported everything and forks those that train: it takes seconds, once."""
    with Nursery() as made:
        yield made
