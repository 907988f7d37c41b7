"""How many threads: what the process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pyro_vae.system import threads
from tests.children import ROOT


@pytest.fixture(autouse=True)
def own(monkeypatch) -> Iterator[None]:
    """A machine of 16 CPUs, whatever this one is; torch's own count is given back."""
    before = torch.get_num_threads()
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(threads, "_bound_cpus", lambda: 16)
    yield
    torch.set_num_threads(before)


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "250000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "10000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "3200000 100000"}, 8),
        ({"proc/self/cgroup": "0::/job/step", f"{V2}/job/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "max 100000", f"{V2}/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/../../gone", f"{V2}/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/docker/1",
                f"{V1}/docker/1/cpu.cfs_quota_us": "150000",
                f"{V1}/docker/1/cpu.cfs_period_us": "50000",
            },
            3,
        ),
        ({"proc/self/cgroup": "1:cpu:/", f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, 8),
        ({"proc/self/cgroup": "no colons\n\n"}, 8),
    ],
)
def test_the_quota_of_the_control_group_cuts_torchs_choice(tmp_path, contents, expected):
    assert threads.usable_threads(files(tmp_path, contents)) == expected


@pytest.mark.parametrize(("bound", "expected"), [(1, 1), (5, 5), (8, 8), (64, 8), (None, 8)])
def test_the_affinity_cuts_torchs_choice(tmp_path, monkeypatch, bound, expected):
    monkeypatch.setattr(threads, "_bound_cpus", lambda: bound)
    assert threads.usable_threads(tmp_path) == expected


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_a_number_in_the_environment_is_left_as_torch_took_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(threads, "_bound_cpus", lambda: 2)
    monkeypatch.setenv(name, "8")
    assert threads.usable_threads(tmp_path) == 8
    monkeypatch.setenv(name, "")
    assert threads.usable_threads(tmp_path) == 2


def test_what_is_asked_for_is_set(monkeypatch):
    monkeypatch.undo()
    for count in (1, 3):
        threads.set_threads(count)
        assert torch.get_num_threads() == count
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        threads.set_threads(0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
@pytest.mark.parametrize(
    ("variable", "expected"), [(None, "1 1 3"), pytest.param("2", "2 8 3", marks=pytest.mark.slow)]
)
def test_a_process_bound_to_one_cpu(variable, expected):
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; from pyro_vae.system import threads\n"
        "threads.set_threads(None); own = torch.get_num_threads()\n"
        "torch.set_num_threads(8); threads.set_threads(None); cut = torch.get_num_threads()\n"
        "threads.set_threads(3); print(own, cut, torch.get_num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in threads.VARIABLES} | {"PYTHONPATH": str(ROOT)}
    environment |= {} if variable is None else {"OMP_NUM_THREADS": variable}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == expected
