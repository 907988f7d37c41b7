"""How many threads: what the process may use."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Iterator

import joblib
import pytest
import torch

from pyro_vae.system import threads
from tests.children import ROOT

NUM_THREADS = torch.get_num_threads


@pytest.fixture(autouse=True)
def own(monkeypatch) -> Iterator[None]:
    """Torch would take 8 threads, whatever this machine is; its own count is given back."""
    before = torch.get_num_threads()
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("usable", "expected"), [(1, 1), (3, 3), (8, 8), (64, 8)])
def test_the_cpus_of_the_process_limit_torchs_choice(monkeypatch, usable, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda only_physical_cores: usable)
    assert threads.usable_threads() == expected
    threads.set_threads(None)
    assert NUM_THREADS() == expected


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_a_number_in_the_environment_is_left_as_torch_took_it(monkeypatch, name):
    monkeypatch.setattr(joblib, "cpu_count", lambda only_physical_cores: 2)
    monkeypatch.setenv(name, "8")
    assert threads.usable_threads() == 8
    monkeypatch.setenv(name, "")
    assert threads.usable_threads() == 2


@pytest.mark.parametrize(
    ("quota", "expected"), [("300000 100000", 3), ("250000 100000", 3), ("10000 100000", 1), ("max 100000", 8)]
)
def test_the_quota_of_the_control_group_limits_torchs_choice(tmp_path, monkeypatch, quota, expected):
    """joblib reads the quota of a container; a part of a CPU counts as a whole one."""
    (limit := tmp_path / "cpu.max").write_text(quota + "\n", encoding="utf-8")
    real = {"exists": os.path.exists, "open": open}
    path = "/sys/fs/cgroup/cpu.max"
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os.path, "exists", lambda name: name == path or real["exists"](name))
    monkeypatch.setattr(builtins, "open", lambda name, *a, **k: real["open"](limit if name == path else name, *a, **k))
    assert threads.usable_threads() == expected


def test_the_number_of_threads_is_set(monkeypatch):
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
