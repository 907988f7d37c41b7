"""How many CPU threads torch uses: what this process may use, not what the machine has."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import torch

#: How a user sets the number of threads of torch's libraries; where one is set, torch has heeded it.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_threads(threads: int | None) -> None:
    """Set how many CPU threads torch uses.

    Args:
        threads: How many; None: as many as this process may use, see :func:`usable_threads`.

    Raises:
        ValueError: If it is below 1.
    """
    most = max(64, 4 * (os.cpu_count() or 1))
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}.")
    if threads is not None and threads > most:
        raise ValueError(f"threads: expected at most {most} on this machine, got {threads}; more would only be slower.")
    torch.set_num_threads(usable_threads() if threads is None else threads)


def usable_threads(root: Path = Path("/")) -> int:
    """How many threads are of use here: torch's own choice, cut down to what the process may use.

    That is the CPUs to which it is bound and the quota of its control groups; torch alone counts the machine's. A
    number in ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` is left as torch took it.

    Args:
        root: Where the file system begins.
    """
    own = torch.get_num_threads()
    if any(os.environ.get(name, "").strip() for name in VARIABLES):
        return own
    return max(1, math.ceil(min(own, _bound_cpus() or own, _quota(root))))


def _bound_cpus() -> int | None:
    """To how many CPUs this process is bound; None where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count()
    return os.cpu_count()


def _quota(root: Path) -> float:
    """How many CPUs' time the control groups of this process allow; infinite where there is no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            quota = min(quota, *(_v2(folder) for folder in _upwards(root / "sys/fs/cgroup", path)))
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                quota = min(quota, *(_v1(folder) for folder in _upwards(root / "sys/fs/cgroup" / mount, path)))
    return quota


def _upwards(mount: Path, path: str) -> list[Path]:
    """A control group and all around it; a container sees its own at the mount, whatever its path."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _v2(folder: Path) -> float:
    return _share(_read(folder / "cpu.max"))


def _v1(folder: Path) -> float:
    return _share(_read(folder / "cpu.cfs_quota_us") + _read(folder / "cpu.cfs_period_us"))


def _share(words: list[str]) -> float:
    """Quota over period; infinite for ``max``, for -1, and where the files are not there."""
    numbers = [int(word) for word in words if re.fullmatch(r"-?\d+", word)]
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else math.inf


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
