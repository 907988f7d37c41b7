"""Pointwise log p(x) as ``arviz.compare`` takes it."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.imports import import_arviz


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
    if int(version("arviz").split(".")[0]) < 1:
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
