"""What only a fresh process shows: the time of imports, the time to the first step, the peak of memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput.rounds import Spread, spread

ROOT = Path(__file__).resolve().parents[2]

#: A name in the package's namespace loads what is behind it: so the second line is what a program pays.
IMPORTS = {
    "import torch, pyro": "import torch, pyro",
    "import pyro_vae": "import pyro_vae",
    "import pyro_vae, its VAE, SVI and elbo": "import pyro_vae as pv; pv.VAE, pv.SVI, pv.elbo",
}
REFERENCE = "import torch, pyro"
COMPILED = ("plain-compiled", "captured", "captured-bf16")
STARTED = ("plain", "plain-compiled", "pyro", "pythae", "eager", "captured", "captured-bf16")


def _python(*arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints in the last line."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output")
    return done.stdout.strip().splitlines()[-1]


def imports(rounds: int) -> dict[str, list[float]]:
    """Seconds of each import in interleaved rounds; the first, which fills the page cache, is not counted."""
    seconds: dict[str, list[float]] = {words: [] for words in IMPORTS}
    shuffled = random.Random(0)
    for number in range(rounds + 1):
        order = list(IMPORTS)
        shuffled.shuffle(order)
        for words in order:
            timed = f"import time; t = time.perf_counter(); {IMPORTS[words]}; print(time.perf_counter() - t)"
            value = float(_python("-c", timed))
            if number:
                seconds[words].append(value)
    return seconds


def import_ratios(seconds: dict[str, list[float]]) -> dict[str, Spread]:
    """Each over the reference, round by round."""
    reference = seconds[REFERENCE]
    return {
        words: spread(mine / theirs for mine, theirs in zip(values, reference, strict=True))
        for words, values in seconds.items()
        if words != REFERENCE
    }


def starts(names: Sequence[str], batch_size: int, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """For each rival what :func:`report` tells, of fresh processes; compiled ones with no cache of kernels, then with one."""
    kinds = [(n, cache) for n in STARTED if n in names for cache in (("cold", "warm") if n in COMPILED else ("",))]
    found: dict[str, Any] = {f"{name} {cache}".strip(): [] for name, cache in kinds}
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
            for name, cache in kinds:
                started = found[f"{name} {cache}".strip()]
                where = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{name}"} if cache else {}
                arguments = ("-m", "benchmarks.throughput.fresh", name, str(batch_size), str(time.time()))
                try:
                    started.append(json.loads(_python(*arguments, **where)))
                except RuntimeError as error:
                    started.append({"note": str(error)})
        log(f"first steps: round {number + 1} of {rounds}")
    return found


def peak_bytes() -> int:
    """The most memory this process has held. ``ru_maxrss`` would count that of the parent before exec, too."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def report(name: str, batch_size: int, born: float) -> dict[str, Any]:
    """Seconds since the process was asked for until it had imported, built and taken a step, and the memory of 50."""
    from benchmarks.throughput import images, rivals

    x, _ = images.load(None, 4096)
    try:
        run = rivals.make(name, rivals.Case("mlp", x, batch_size, 1))
        built = time.time()
        run(1)
        first = time.time()
        run(50)
    except rivals.UnavailableError as error:
        return {"note": str(error)}
    return {"built": built - born, "first_step": first - born, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
