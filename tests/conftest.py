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

    ``thin(n, by="name")`` counts the cells of each name by themselves, so that every name keeps some. The count starts one
    further for each name, so that the cells that stay differ in the other parameters.
    """
    tables: dict[tuple[Path, str], dict[str, int]] = {}
    for item in items:
        thin = item.get_closest_marker("thin")
        if thin is not None and item.get_closest_marker("slow") is None:
            assert isinstance(item, pytest.Function)
            counts = tables.setdefault((item.path, item.originalname), {})
            by = thin.kwargs.get("by")
            name = str(item.callspec.params[by]) if by else ""
            cell = counts.setdefault(name, len(counts))
            if cell % thin.args[0]:
                item.add_marker("slow")
            counts[name] += 1


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
