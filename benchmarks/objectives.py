"""Test log p(x) of one network trained on MNIST under several objectives, equal steps, several seeds: a table.

One stochastic layer, 784-200-200-50 tanh, as `docs/results.md` has it; every run is one of `python -m pyro_vae.train` and
one that is there already is read, not repeated: the command can be stopped and goes on. Times are of the runs as they were
made, so they compare only with ``--jobs 1`` on a quiet machine.

    python benchmarks/objectives.py --data-dir DATA [--epochs 30] [--seeds 3] [--jobs 1] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OBJECTIVES = {
    "trace": [],
    "stl": [],
    "iwae": ["--num-particles", "5"],
    "dreg": ["--num-particles", "5"],
    "miwae": ["--num-particles", "5", "--num-groups", "2"],
}
NETWORK = "--hidden 200 200 --activation tanh --latent-dim 50 --batch-size 100 --val-size 0".split()


def run(name: str, seed: int, options: argparse.Namespace) -> dict:
    """The summary of one run, made if it is not there."""
    folder = options.out / f"{name}-{options.epochs}-{seed}"
    found = folder / "summary.json"
    if not found.exists():
        if (folder / "checkpoint.pt").exists():
            what = ["--resume", str(folder)]
        else:
            what = ["--elbo", name, *OBJECTIVES[name], "--dataset", "mnist", "--data-dir", str(options.data_dir)]
            what += [*NETWORK, "--epochs", str(options.epochs), "--seed", str(seed), "--run-dir", str(folder)]
        threads = ["--threads", str(options.threads)] if options.threads else []
        subprocess.run([sys.executable, "-m", "pyro_vae.train", *what, *threads, "--quiet"], check=True)
    return json.loads(found.read_text())


def row(name: str, summaries: list[dict]) -> str:
    tests = [s["test"] for s in summaries]
    cells = [f"| `{name}` |"]
    for key in ("elbo", "log_px"):
        values = [t[key]["value"] for t in tests]
        sign = -1 if key == "log_px" else 1
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        cells.append(f"{sign * statistics.mean(values):.2f} | {error:.2f} |")
    cells.append(f"{min(t['active_units'] for t in tests)} to {max(t['active_units'] for t in tests)} |")
    cells.append(f"{statistics.mean(t['log_px']['pareto_k_bad'] for t in tests):.0f} |")
    cells.append(f"{statistics.mean(s['seconds']['train'] for s in summaries):.0f} s |")
    return " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=0, help="threads of each run; 0: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/objectives"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {(n, s): pool.submit(run, n, s, options) for s in range(options.seeds) for n in OBJECTIVES}
        found = {key: job.result() for key, job in jobs.items()}
    print("| objective | ELBO | error over seeds | -log p(x) | error over seeds | active units | bad k | training |")
    print("|---|---|---|---|---|---|---|---|")
    for name in OBJECTIVES:
        print(row(name, [found[name, seed] for seed in range(options.seeds)]))


if __name__ == "__main__":
    main()
