"""Do latent units find the factors of `shapes`? MIG and FactorVAE score by the weight of the KL: a table and pictures.

One network, 1024-256-256-10 and back, on 20,000 binary images of 32 x 32; scores of 4,000 others, by their q(z|x) (MIG) and
its means (FactorVAE score); the mean over seeds with its standard error, and what the models are as such: ELBO, rate and
total correlation of the test data. Weights are constant, unless `--warm-up` lets them rise from 0 in a first share of the
steps; docs/results.md says what that does. A run that is there is read, not repeated.

    python benchmarks/disentangling.py [--epochs 50] [--seeds 3] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_vae as pv
from pyro_vae.data import Data
from pyro_vae.data.named import shapes
from pyro_vae.evidence.criticism.aggregate_posterior import aggregate_posterior
from pyro_vae.evidence.criticism.disentanglement import InformationGap, factor_vae_score, mutual_information_gap
from pyro_vae.inference.kl.total_correlation import ESTIMATORS, TotalCorrelation
from pyro_vae.report.figures.disentanglement import traversals_by_factor, units_by_factors
from pyro_vae.report.pictures import write_figure

#: Title to the weight of the whole KL and that of the total correlation.
SETTINGS = {
    "beta 1": (1.0, 1.0),
    "beta 4": (4.0, 1.0),
    "beta 6": (6.0, 1.0),
    "beta 8": (8.0, 1.0),
    "tcvae 6": (1.0, 6.0),
}
COLUMNS = ("mig", "factor_vae", "elbo", "rate", "total_correlation")


def vae(seed: int) -> pv.VAE:
    torch.manual_seed(seed)
    return pv.VAE((1, 32, 32), 10, (256, 256), "relu")


def named(title: str, seed: int, options: argparse.Namespace, ending: str) -> Path:
    words = [title.replace(" ", "-"), options.epochs, options.batch_size, seed]
    if options.estimator != "even" and SETTINGS[title][1] != 1:
        words.append(options.estimator)
    if options.warm_up:
        words.append(f"warm-up-{options.warm_up:g}")
    return options.out / f"{'-'.join(map(str, words))}.{ending}"


def trained(title: str, seed: int, data: Data, options: argparse.Namespace) -> pv.VAE:
    """The model of one run, trained if it is not there."""
    model = vae(seed)
    file = named(title, seed, options, "pt")
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    model.center_output(*data.moments())
    beta, weight = SETTINGS[title]
    objective: Any = pv.elbo("mean-field", max_plate_nesting=1)
    if weight != 1:
        objective = TotalCorrelation(objective, weight, estimator=options.estimator, num_data=len(data.train.x))
    steps = options.epochs * math.ceil(len(data.train.x) / options.batch_size)
    rising = pv.schedules.linear(0.0, beta, steps=round(options.warm_up * steps)) if options.warm_up else beta
    pv.fit(
        model,
        data,
        elbo=objective,
        beta=rising,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=1e-3,
        lr_schedule="cosine",
        seed=seed,
        progress=False,
    )
    torch.save(model.state_dict(), file)
    return model


@torch.no_grad()
def gap_of(model: pv.VAE, data: Data) -> InformationGap:
    return mutual_information_gap(model.encode(data.test.x), shapes.factors("test"), seed=0)


@torch.no_grad()
def scores(title: str, seed: int, model: pv.VAE, data: Data, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one model, on the test data, found if they are not there."""
    file = named(title, seed, options, "json")
    if file.exists():
        return json.loads(file.read_text())
    x = data.test.x
    pyro.set_rng_seed(0)
    elbo = pv.elbo("mean-field", max_plate_nesting=1).bound(model.model, model.guide, x).mean()
    whole = aggregate_posterior(model.model, model.guide, x, num_samples=4000, seed=0)
    found = {
        "mig": gap_of(model, data).value,
        "factor_vae": factor_vae_score(model.encode(x).mean, shapes.factors("test"), seed=0).value,
        "elbo": float(elbo),
        "rate": whole.rate,
        "total_correlation": whole.total_correlation,
    }
    file.write_text(json.dumps(found, indent=1))
    return found


def row(title: str, found: list[dict[str, float]]) -> str:
    cells = []
    for name in COLUMNS:
        values = [one[name] for one in found]
        error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{error}")
    return f"| `{title}` | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--warm-up", type=float, default=0.0, help="share of the steps in which weights rise from 0")
    parser.add_argument("--estimator", choices=ESTIMATORS, default="even", help="of the total correlation in training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shown", type=int, default=0, help="seed of the models in the pictures")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings to run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/disentangling"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = pv.data.load("shapes", mode="threshold")
    found: dict[str, list[dict[str, float]]] = {title: [] for title in options.only}
    gaps: dict[str, InformationGap] = {}
    models: dict[str, pv.VAE] = {}
    for seed in range(options.seeds):
        for title in options.only:
            model = trained(title, seed, data, options)
            found[title].append(scores(title, seed, model, data, options))
            print(f"{title}, seed {seed}: MIG {found[title][-1]['mig']:.3f}", flush=True)
            if seed == options.shown:
                gaps[title], models[title] = gap_of(model, data), model
    names, x = [*shapes.FACTORS], data.test.x[shapes.factors("test")[:, 1].argmax()]  # a large shape
    write_figure(options.out / "factors.png", units_by_factors(gaps, names))
    with torch.no_grad():
        write_figure(options.out / "traversals.png", traversals_by_factor(models, x, gaps, names))
    print("| model | MIG | FactorVAE score | ELBO, nats | rate, nats | total correlation, nats |")
    print("|---|---|---|---|---|---|")
    for title in options.only:
        print(row(title, found[title]))


if __name__ == "__main__":
    main()
