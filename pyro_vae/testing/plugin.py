"""The pytest plugin with the fixture ``elbo_checks``.

Turn the plugin on with ``-p pyro_vae.testing.plugin``, or name it in ``pytest_plugins`` of a conftest. Torch and Pyro are
imported only when a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyro_vae.testing.findings import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options ``--elbo-samples`` and ``--elbo-seed``."""
    group = parser.getgroup("pyro_vae", "ELBO-bound checks")
    group.addoption(
        "--elbo-samples",
        type=int,
        default=512,
        metavar="N",
        help="number of simulated pairs of each check, at least 100 (default: 512)",
    )
    group.addoption("--elbo-seed", type=int, default=0, metavar="N", help="seed of each check's draws (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that are out of range, before the tests run."""
    if (samples := config.getoption("--elbo-samples")) < 100:
        raise pytest.UsageError(f"--elbo-samples: expected at least 100, got {samples}; pass a larger number.")


@pytest.fixture
def elbo_checks(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """``check_elbo_bounds`` with the number of samples and seed of pytest's options.

    If a law is broken, the test fails with a sentence for each finding. Otherwise the report is printed; ``pytest -rP`` shows
    it.
    """
    __tracebackhide__ = True

    def checks(model: Callable[..., object], guide: Callable[..., object], *args: object, **kwargs: Any) -> Report:
        __tracebackhide__ = True
        from pyro_vae.testing.elbo_bounds import check_elbo_bounds
        from pyro_vae.testing.findings import BrokenBound

        kwargs.setdefault("num_samples", request.config.getoption("--elbo-samples"))
        kwargs.setdefault("seed", request.config.getoption("--elbo-seed"))
        try:
            report = check_elbo_bounds(model, guide, *args, **kwargs)
        except BrokenBound as error:
            sentences = str(error)
        else:
            print(report)
            return report
        pytest.fail(sentences, pytrace=False)

    return checks
