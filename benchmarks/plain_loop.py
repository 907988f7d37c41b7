"""Training time of ``pyro_vae.fit`` over that of a plain PyTorch loop, interleaved, on the same network and data.

    python benchmarks/plain_loop.py --data-dir DATA [--epochs 1] [--rounds 7] [--dataset mnist]

The plain loop is written as well as we can: data in memory, one fused Adam, Bernoulli binarization of every batch, the
KL and the Bernoulli log-likelihood written out. It is the loop of the figure in docs/results.md.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data import Data, Split


class PlainVAE(nn.Module):
    """784-200-200-50-200-200-784 with tanh, and nothing of Pyro."""

    def __init__(self, data_dim: int, hidden: int, latent_dim: int, mean: Tensor) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(data_dim, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, data_dim)
        )
        with torch.no_grad():
            self.decoder[-1].bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

    def loss(self, x: Tensor) -> Tensor:
        """Minus the ELBO summed over the batch, the KL sampled as ``Trace_ELBO`` samples it."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        kl = 0.5 * (z.square() - noise.square()).sum() - log_scale.sum()
        return F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl


def train_plain(x: Tensor, epochs: int, batch_size: int) -> float:
    """Seconds to train the plain loop."""
    torch.manual_seed(0)
    model = PlainVAE(x.shape[1], 200, 50, x.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    started = time.perf_counter()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(batch_size):
            loss = model.loss(torch.bernoulli(x[index]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return time.perf_counter() - started


def train_ours(x: Tensor, epochs: int, batch_size: int) -> float:
    """Seconds to train ours, the epoch's bookkeeping included."""
    vae = pv.VAE((x.shape[1],), 50, (200, 200), "tanh")
    vae.center_output(x.mean(0))
    data = Data("mnist", Split(x), redraw=True)
    started = time.perf_counter()
    pv.fit(vae, data, epochs=epochs, batch_size=batch_size, progress=False)
    return time.perf_counter() - started


def main() -> None:
    """Print the times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=100)
    args = parser.parse_args()
    x = pv.data.load(args.dataset, data_dir=args.data_dir, download=False, val_size=0).train.x.flatten(1)
    train_plain(x[:2000], 1, args.batch_size)
    train_ours(x[:2000], 1, args.batch_size)
    ratios = []
    for _ in range(args.rounds):
        plain, ours = train_plain(x, args.epochs, args.batch_size), train_ours(x, args.epochs, args.batch_size)
        ratios.append(ours / plain)
        images = len(x) * args.epochs
        print(
            f"plain {plain:7.2f} s ({images / plain:8,.0f} images/s)   ours {ours:7.2f} s ({images / ours:8,.0f} images/s)"
            f"   ratio {ours / plain:.3f}",
            flush=True,
        )
    low, high, threads = min(ratios), max(ratios), torch.get_num_threads()
    print(f"median ratio {statistics.median(ratios):.3f}, from {low:.3f} to {high:.3f}, {threads} threads")


if __name__ == "__main__":
    main()
