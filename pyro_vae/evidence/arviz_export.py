"""Conversion to the containers of the installed ArviZ, version 0.x or 1.x."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyro_vae.system.imports import import_arviz

if TYPE_CHECKING:
    import xarray

#: An ``arviz.InferenceData`` or ``ELPDData`` (ArviZ 0.x), an ``xarray.DataTree`` or ``ELPDDataLOO`` (ArviZ 1.x).
ArvizContainer: TypeAlias = Any


def is_arviz_1() -> bool:
    """Return True if ArviZ 1.x, which uses ``DataTree``, is installed."""
    return int(version("arviz").split(".")[0]) >= 1


def container(group: str, dataset: xarray.Dataset) -> ArvizContainer:
    """Put a data set into the installed ArviZ's container.

    Args:
        group: Name of the group in the container.
        dataset: Data set that becomes the group.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (1.x).
    """
    import xarray

    if is_arviz_1():
        return xarray.DataTree.from_dict({group: dataset})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ArviZ warns of a group that it does not define
        return import_arviz().InferenceData(**{group: dataset})


def draws_group(group: str, values: Mapping[str, NDArray[np.float64]]) -> ArvizContainer:
    """Put named draws into the installed ArviZ's container, as one group.

    The group has the dimensions ``chain``, of size 1, and ``draw``.

    Args:
        group: Name of the group.
        values: S draws under each name, shape ``(S,)``.

    Returns:
        See :func:`container`.
    """
    import xarray

    return container(group, xarray.Dataset({name: (("chain", "draw"), array[None]) for name, array in values.items()}))


def elpd_data(log_px: NDArray[np.float64], num_unreliable: int = 0) -> ArvizContainer:
    """Convert log p(x) of each datum to the installed ArviZ's ``ELPDData``.

    The values are passed on unchanged: nothing is smoothed or left out.

    Args:
        log_px: log p(x), shape ``(N,)``, nats.
        num_unreliable: Number of data whose estimate cannot be trusted; if it is not 0, ArviZ's ``warning`` is set.

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
