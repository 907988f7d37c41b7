"""How far can you trust a log p(x)? The pictures and figures of docs/trusting-log-px.md, on the embedded digits.

    python examples/trust_log_px.py [FOLDER] [--epochs 100] [--steps 1000] [--most 10000]

Writes ``trust-estimates.png`` and ``trust-weights.png`` to FOLDER (default: the current one). Takes a few minutes on one
core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pyro_vae as pv
from pyro_vae import evidence

SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)
COLORS = {"prior": "#D55E00", "guide": "#0072B2", "refined guide": "#009E73"}


def trained(epochs: int) -> tuple[pv.VAE, torch.Tensor]:
    """A VAE whose guide is far from perfect, and the images that it made itself."""
    torch.manual_seed(0)
    data = pv.data.load("digits", mode="none")
    vae = pv.VAE(data.data_shape, latent_dim=16, hidden=(128,), likelihood="normal")
    vae.center_output(*data.moments())
    pv.fit(vae, data, epochs=epochs, lr=2e-3, progress=False)
    assert data.test is not None
    return vae, data.test.x[:50]


def main() -> None:
    """Print the figures and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000, help="of the chains of the bracket")
    parser.add_argument("--most", type=int, default=10_000, help="the largest K")
    options = parser.parse_args()
    folder, sizes = options.folder, [size for size in SIZES if size <= options.most]
    folder.mkdir(parents=True, exist_ok=True)
    vae, x = trained(options.epochs)
    pair = vae.model, vae.guide

    # Images that the model made: their log p(x) can be bounded from both sides.
    bracket = evidence.bidirectional(*pair, x, num_steps=options.steps, start="guide", seed=0)
    made, found = bracket.args[0], bracket.summary()
    print(f"bracket, 50 simulated images: {found.lower:.3f} to {found.upper:.3f} nats")

    curves: dict[str, list[evidence.Estimate]] = {name: [] for name in COLORS}
    for size in sizes:
        curves["prior"].append(evidence.prior_sampling(vae.model, made, num_samples=size, seed=1))
        curves["guide"].append(evidence.importance_sampling(*pair, made, num_samples=size, seed=1))
        curves["refined guide"].append(evidence.refined_importance_sampling(*pair, made, num_samples=size, seed=1))
    for name, column in curves.items():
        for size, estimate in zip(sizes, column, strict=True):
            w = estimate.summary()
            naive = naive_error(estimate)
            print(
                f"{name:14} K = {size:6,}: {w.log_px:9.3f}, the usual error {naive:.3f}; k too large for "
                f"{w.pareto_k_bad:2} of 50, so the error is {'unknown' if w.mc_error is None else f'{w.mc_error:.3f}'}"
            )
    draw_estimates(sizes, curves, found).savefig(folder / "trust-estimates.png", dpi=150)
    draw_weights(pair, made).savefig(folder / "trust-weights.png", dpi=150)


def naive_error(estimate: evidence.Estimate) -> float:
    """What the delta method says where no one asks whether it may be used: Var(w) / (K mean(w)^2) is 1 / ESS - 1 / K."""
    variance = (1 / estimate.ess - 1 / estimate.draws).clamp(min=0)
    return float(variance.sum().sqrt() / len(variance))


def draw_estimates(
    sizes: list[int], curves: dict[str, list[evidence.Estimate]], found: evidence.BracketSummary
) -> plt.Figure:
    """How far estimates lie below log p(x), and how far the usual error bar says they may."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    middle, width = (found.lower + found.upper) / 2, abs(found.gap) / 2 + 2 * (found.gap_std_error or 0.0)
    axes.axhspan(1e-4, width, color="0.85", label="within the bracket's own error")
    for name, column in curves.items():
        below = [max(middle - e.summary().log_px, 1e-4) for e in column]
        axes.plot(
            sizes,
            below,
            color=COLORS[name],
            marker="o",
            markersize=4,
            label=f"draws from the {name}: nats below log p(x)",
        )
        axes.plot(sizes, [1.96 * naive_error(e) for e in column], color=COLORS[name], linestyle=":")
        doubted = [(k, y) for k, y, e in zip(sizes, below, column, strict=True) if int((~e.reliable).sum()) > 5]
        if doubted:
            axes.plot(*zip(*doubted, strict=True), "o", color="none", markersize=9, markeredgecolor=COLORS[name])
    axes.plot([], [], color="black", linestyle=":", label="the usual 95 % error bar")
    axes.plot(
        [],
        [],
        "o",
        color="none",
        markersize=9,
        markeredgecolor="black",
        label="k too large for more than a tenth of the images",
    )
    axes.set(xscale="log", yscale="log", xlabel="K, draws for each image", ylabel="nats", ylim=(3e-4, 300))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_weights(pair: tuple, x: torch.Tensor) -> plt.Figure:
    """The weights of the image with the largest k, and of the one with the smallest."""
    estimate = evidence.importance_sampling(*pair, x, num_samples=3000, seed=2)
    order = estimate.pareto_k.argsort()
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    torch.manual_seed(3)
    log_w = pv.log_weights(*pair, x, num_samples=3000).detach()
    for axes, index in zip(panels, (int(order[0]), int(order[-1])), strict=True):
        shares = torch.softmax(log_w[:, index].double(), 0).sort(descending=True).values
        axes.plot(range(1, len(shares) + 1), shares.cumsum(0), color=COLORS["guide"])
        axes.set_xscale("log")
        axes.set(xlabel="draws, the heaviest first", ylim=(0, 1.02))
        axes.set_title(
            f"k = {float(estimate.pareto_k[index]):.2f}: the heaviest of 3,000 has {float(shares[0]):.0%}", fontsize=10
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of the estimate")
    return figure


if __name__ == "__main__":
    main()
