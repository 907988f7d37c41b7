"""Which latent unit holds which factor? A beta-VAE and a beta-TCVAE on shapes whose factors are known.

    python examples/disentangling.py [--epochs 10] [--out FOLDER]

Prints MIG and FactorVAE's score of both, and writes traversals.png and factors.png to FOLDER. It takes about a minute, in which
the factors have not come apart as far as they do in docs/results.md: that takes 50 epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import pyro_vae as pv
from pyro_vae.data.named import shapes
from pyro_vae.models.presets import TCVAE, BetaVAE
from pyro_vae.report.figures.disentanglement import traversals_by_factor, units_by_factors
from pyro_vae.report.pictures import write_figure

KINDS = {"beta 4": BetaVAE, "tcvae 6": TCVAE}


def main() -> None:
    """Train, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("disentangling"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = pv.data.load("shapes", mode="threshold")
    x, factors, names = data.test.x, shapes.factors("test"), [*shapes.FACTORS]
    models, gaps = {}, {}
    for title, kind in KINDS.items():
        torch.manual_seed(options.seed)
        models[title] = vae = kind(data.data_shape, 10, (256, 256), "relu")
        vae.center_output(*data.moments())
        fit = {"epochs": options.epochs, "batch_size": 64, "lr_schedule": "cosine", "seed": options.seed}
        history = pv.fit(vae, data, **fit, progress=False)  # under the weights that the model wants
        with torch.no_grad():
            q = vae.encode(x)
        gaps[title] = pv.evidence.mutual_information_gap(q, factors, seed=0)
        try:
            told = pv.evidence.factor_vae_score(q.mean, factors, seed=0).sentence
        except ValueError:  # after an epoch or two no unit may be in use
            told = "No unit is in use yet: no FactorVAE score."
        print(f"{title}: {gaps[title].sentence} {told} Rate {history.rows[-1]['validation_rate']:.1f} nats.")
    write_figure(options.out / "factors.png", units_by_factors(gaps, names))
    large = x[(factors[:, 0] == 2).float().mul(6).add(factors[:, 1]).argmax()]  # a corner, of the largest
    with torch.no_grad():
        write_figure(options.out / "traversals.png", traversals_by_factor(models, large, gaps, names))


if __name__ == "__main__":
    main()
