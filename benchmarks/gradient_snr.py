"""Signal-to-noise of the gradient by the number of draws K: a table and a figure.

The model of Rainforth et al. (2018), section 4: z ~ N(mu, I), x|z ~ N(z, I) in 20 dimensions, with the guide
q(z|x) = N((x + mu) / 2 + shift, 2/3 I), its parameters a little off the best ones. Every replica of the one datum has
parameters of its own, so that one backward pass gives as many independent gradients. Signal-to-noise of a parameter:
|mean| / standard deviation over replicas; told is the mean over the parameters of each side.

    python benchmarks/gradient_snr.py [--replicas 2000] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import pyro_vae as pv

NAMES = ("iwae", "dreg", "stl", "vimco")
DRAWS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
DIM = 20


def start() -> dict[str, torch.Tensor]:
    """The parameters of one replica, near their best."""
    generator = torch.Generator().manual_seed(1)
    off = 0.05 * torch.randn(2, DIM, generator=generator, dtype=torch.float64)
    return {"mu": off[0], "shift": off[1], "log_scale": torch.full((DIM,), 0.5 * math.log(2 / 3), dtype=torch.float64)}


def program(replicas: int):
    values = start()

    def param(name: str) -> torch.Tensor:
        return pyro.param(name, values[name].expand(replicas, DIM).clone())

    def model(x: torch.Tensor) -> None:
        mu = param("mu")
        with pyro.plate("data", replicas):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        shift, log_scale = param("shift"), param("log_scale")
        with pyro.plate("data", replicas):
            pyro.sample("z", dist.Normal(x / 2 + shift, log_scale.exp()).to_event(1))

    return model, guide


def snr(name: str, draws: int, replicas: int) -> dict[str, float]:
    """Signal-to-noise of encoder and decoder; the replicas are taken in parts that fit into memory."""
    part = max(1, min(replicas, 4_000_000 // (draws * DIM)))
    found: dict[str, list[torch.Tensor]] = {"encoder": [], "decoder": []}
    generator = torch.Generator().manual_seed(2)
    datum = torch.randn(DIM, generator=generator, dtype=torch.float64) * math.sqrt(2)
    for _ in range(math.ceil(replicas / part)):
        pyro.clear_param_store()
        loss = pv.elbo(name, num_particles=draws).differentiable_loss(*program(part), datum.expand(part, DIM))
        store = pyro.get_param_store()
        for side, key in (("encoder", "shift"), ("decoder", "mu")):
            (grad,) = torch.autograd.grad(loss, store[key].unconstrained(), retain_graph=True)
            found[side].append(grad)
    result = {}
    for side, parts in found.items():
        grads = torch.cat(parts)
        result[side] = float((grads.mean(0).abs() / grads.std(0)).mean())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(0)
    noise = math.sqrt(2 / math.pi / options.replicas)
    print(f"{options.replicas} gradients each; a signal of 0 would show as {noise:.3f}")
    print("| objective | side | " + " | ".join(f"K = {k}" for k in DRAWS) + " |")
    print("|---|---|" + "---|" * len(DRAWS))
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = dict(zip(("encoder", "decoder"), figure.subplots(1, 2, sharex=True), strict=True))
    for name in NAMES:
        values = [snr(name, draws, options.replicas) for draws in DRAWS]
        for side, axes in panels.items():
            row = [value[side] for value in values]
            print(f"| `{name}` | {side} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
            axes.loglog(DRAWS, row, "o-", label=name, markersize=4)
    for side, axes in panels.items():
        axes.axhline(noise, color="0.6", linestyle=":", linewidth=1)
        axes.set(title=side, xlabel="K, draws", ylabel="signal-to-noise of the gradient")
        axes.spines[["top", "right"]].set_visible(False)
    panels["encoder"].legend(frameon=False)
    figure.savefig(options.out / "gradient_snr.png", dpi=150)


if __name__ == "__main__":
    main()
