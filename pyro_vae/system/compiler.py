"""The decision to compile the training steps of a run.

Steps are compiled if the machine can compile them and the run is long enough to save time.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

#: Compile only if the eager training would take longer than this number of seconds, about the time that compiling
#: takes.
WORTH_SECONDS = 120.0
#: Python's share of an eager training step, in seconds, and flops per second of a CPU and a GPU. These numbers are rough and
#: fixed, so that every machine makes the same choice.
STEP_SECONDS, CPU_FLOPS, GPU_FLOPS = 1e-3, 1e11, 1e13

_SOURCE = '#include <Python.h>\nextern "C" int pyro_vae_probe() { return PY_MAJOR_VERSION; }\n'


@functools.cache
def obstacle() -> str | None:
    """Return the reason why this machine cannot compile; None if it can.

    To find out, the function compiles and loads a small program. Compiling needs a C++ compiler, the header
    ``Python.h``, and a temporary folder from which code may be executed.
    """
    compiler = shutil.which(_compiler_name())
    if compiler is None:
        return f"there is no C++ compiler {_compiler_name()!r} (set the environment variable CXX to another compiler)"
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").is_file():
        return f"there is no Python.h in {include} (install a package such as python3-dev)"
    root = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        if root is not None:
            Path(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
            source.write_text(_SOURCE)
            command = [compiler, "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(library)]
            finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if finished.returncode != 0:
                return f"{compiler} does not compile: {_last_line(finished.stderr)}"
            ctypes.CDLL(str(library)).pyro_vae_probe()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"code cannot be compiled and executed in {root or tempfile.gettempdir()}: {error}"
    return None


def _compiler_name() -> str:
    """Return the name of the C++ compiler that Inductor calls."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no error message"


def worth_compiling(flops: float, device: torch.device) -> bool:
    """Return True if an evaluation can be compiled and this saves time.

    Args:
        flops: Floating-point operations of the whole evaluation.
        device: Device of the model.
    """
    return device.type == "cpu" and flops / CPU_FLOPS >= WORTH_SECONDS / 4 and obstacle() is None


def should_compile(asked: bool | None, steps: int, flops: float, device: torch.device) -> tuple[bool, str]:
    """Decide whether to compile the training steps of a run.

    Args:
        asked: The user's choice (the flag ``--compile``); None: decide automatically.
        steps: Number of training steps of the run.
        flops: Floating-point operations of one training step.
        device: Device of the model.

    Returns:
        The decision, and its reason as text, such as ``"steps compiled, as asked"``.

    Raises:
        ValueError: If ``asked`` is True and this machine cannot compile.
    """
    if asked is False:
        return False, "steps not compiled, as asked"
    if asked is None:
        seconds = steps * (STEP_SECONDS + flops / (CPU_FLOPS if device.type == "cpu" else GPU_FLOPS))
        if seconds < WORTH_SECONDS:
            return False, f"steps not compiled: {steps:,} of this size do not repay it"
        if device.type not in ("cpu", "cuda"):
            return False, f"steps not compiled: not on {device.type}"
    if (reason := obstacle()) is not None:
        if asked:
            raise ValueError(f"compile: this machine cannot compile steps, since {reason}; remove --compile.")
        return False, f"steps not compiled: {reason}"
    return True, "steps compiled" + (", as asked" if asked else f": {steps:,} of this size repay it")
