"""Train a VAE on digits, estimate its log p(x), and load the figures: the README's Python in one file.

python examples/quickstart.py [EPOCHS]
"""

from __future__ import annotations

import sys

import pyro_vae as pv


def main(epochs: int = 20) -> None:
    """Train, evaluate, print."""
    data = pv.data.load("digits")
    vae = pv.VAE(data.data_shape, latent_dim=16)
    vae.center_output(data.train.x.mean(0))
    history = pv.fit(vae, data, elbo="trace", epochs=epochs, beta=pv.schedules.linear(0.0, 1.0, steps=10 * epochs))

    estimate = pv.evidence.importance_sampling(vae.model, vae.guide, data.test.x, num_samples=1000)
    summary = estimate.summary()
    print(f"best epoch {history.best_epoch}")
    print(f"ELBO     {summary.elbo:.3f}, error over data {summary.elbo_std_error:.3f}")
    print(f"log p(x) {summary.log_px:.3f}, error over data {summary.std_error:.3f}, k too large {summary.pareto_k_bad}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
