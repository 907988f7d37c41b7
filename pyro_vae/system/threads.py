"""The number of CPU threads that torch uses."""

from __future__ import annotations

import os

import joblib
import torch

from pyro_vae.errors import check_count

#: Environment variables that set how many threads torch's libraries use. Torch reads these variables at import.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads that torch uses.

    Args:
        threads: The number of threads; None: the number that :func:`usable_threads` returns.

    Raises:
        TypeError: If ``threads`` is not a whole number.
        ValueError: If ``threads`` is below 1, or far above the number of CPUs.
    """
    if threads is None:
        torch.set_num_threads(usable_threads())
        return
    check_count("threads", threads)
    most = max(64, 4 * (os.cpu_count() or 1))
    if threads > most:
        raise ValueError(
            f"threads: expected at most {most} on this machine, got {threads}; more threads would be slower."
        )
    torch.set_num_threads(threads)


def usable_threads() -> int:
    """Return torch's number of threads, or fewer if few CPUs are usable.

    The process may be bound to some CPUs, and its control group (cgroup) may have a CPU quota, which torch ignores. The
    number of threads does not exceed either limit. If ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` is set, torch's number
    is returned unchanged.
    """
    own = torch.get_num_threads()
    if any(os.environ.get(name, "").strip() for name in VARIABLES):
        return own
    return min(own, int(joblib.cpu_count(only_physical_cores=False)))
