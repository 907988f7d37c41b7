"""What a batch tells of the total correlation: what steps took for it, and what it was, by estimator and batch size.

A VAE 64-64-4 and back on the embedded digits, the total correlation weighted by 6 or by 1, 40 epochs of batches of 64 or 320
of 512; what it came to is that of all training codes. One thread, two minutes.

    python benchmarks/total_correlation.py [--seed 0]
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.evidence.criticism.aggregate_posterior import aggregate_posterior
from pyro_vae.inference.kl.total_correlation import TotalCorrelation

WEIGHT = 6.0


def row(size: int, estimator: str | None, seed: int) -> str:
    data = pv.data.load("digits", val_size=0)
    torch.manual_seed(seed)
    vae = pv.VAE(data.data_shape, 4, (64,))
    vae.center_output(*data.moments())
    objective: Any = pv.elbo("mean-field", max_plate_nesting=1)
    if estimator is not None:
        objective = TotalCorrelation(objective, WEIGHT, estimator=estimator, num_data=len(data.train.x))
    epochs = 40 if size == 64 else 320
    history = pv.fit(
        vae, data, elbo=objective, epochs=epochs, batch_size=size, lr=1e-3, seed=seed, compile=False, progress=False
    )
    last = history.rows[-1]
    taken = "" if estimator is None else f"{(last['train_elbo'] - last['objective']) / (WEIGHT - 1):.2f}"
    with torch.no_grad():
        found = aggregate_posterior(vae.model, vae.guide, data.train.x, num_samples=2000, seed=0)
    setting = f"1, {size}" if estimator is None else f"{WEIGHT:g}, `{estimator}`, {size}"
    return f"| {setting} | {taken} | {found.total_correlation:.2f} | {found.mutual_information:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="total correlation")  # what it warns of is what is shown
    print("| weight, `estimator`, B | what a step took for the total correlation | total correlation | I(x; z) |")
    print("|---|---|---|---|")
    for size in (64, 512):
        for estimator in (None, "even", "weighted"):
            print(row(size, estimator, options.seed), flush=True)


if __name__ == "__main__":
    main()
