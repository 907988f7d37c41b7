"""Values in what the installed ArviZ, 0.x or 1.x, takes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.system.imports import import_arviz


def is_arviz_1() -> bool:
    """Whether ArviZ is of version 1.x, whose container is a ``DataTree``."""
    return int(version("arviz").split(".")[0]) >= 1


def draws_group(group: str, values: Mapping[str, NDArray[np.float64]]) -> Any:
    """One group of values by name, over ``draw`` and a ``chain`` of 1, in the installed ArviZ's container.

    Args:
        group: Its name.
        values: Name to values, each of shape ``(S,)``.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (1.x).
    """
    import xarray

    dataset = xarray.Dataset({name: (("chain", "draw"), array[None]) for name, array in values.items()})
    if is_arviz_1():
        return xarray.DataTree.from_dict({group: dataset})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the group is not one of ArviZ's own
        return import_arviz().InferenceData(**{group: dataset})


def elpd_data(log_px: NDArray[np.float64], num_unreliable: int = 0) -> Any:
    """Pointwise log p(x) as the installed ArviZ's ``ELPDData``, as they are: nothing is smoothed or left out.

    Args:
        log_px: Shape ``(N,)``, nats.
        num_unreliable: How many of them cannot be trusted; any sets ArviZ's ``warning``.

    Returns:
        An ``ELPDData`` (ArviZ 0.x) or ``ELPDDataLOO`` (1.x): the sum over data, its standard error, and the values.
    """
    import xarray

    num = len(log_px)
    pointwise = xarray.DataArray(log_px, dims="datum")
    total, error = float(log_px.sum()), float(log_px.std()) * math.sqrt(num)
    if not is_arviz_1():
        import_arviz()
        from arviz.stats.stats_utils import ELPDData

        values = {
            "elpd_loo": total,
            "se": error,
            "p_loo": math.nan,  # no parameters were counted
            "n_samples": 1,
            "n_data_points": num,
            "warning": num_unreliable > 0,
            "loo_i": pointwise,
            "scale": "log",
        }
        return ELPDData(data=list(values.values()), index=list(values))
    from arviz_stats.utils import ELPDDataLOO

    return ELPDDataLOO(
        elpd=total,
        se=error,
        p=math.nan,
        n_samples=1,
        n_data_points=num,
        scale="log",
        warning=num_unreliable > 0,
        good_k=None,
        elpd_i=pointwise,
    )
