"""Accuracy on MNIST from a few labels: `m2`, `m1m2` and the auxiliary models, beside their classifier on the labels alone.

All training images are there, without labels but for the balanced few that `--labels` and the draw's number choose; images
are binarized afresh for every batch. Nothing is chosen by the test images: accuracy is that of the last epoch. The same
classifier (of `m1m2`, of the same trained VAE's latent vectors) is trained on the labelled images alone, until it fits
them. A mean over label draws has its standard error. A run that is there is read, not repeated.

    python benchmarks/semi_supervised.py [--models m2 m1m2] [--labels 100 600 1000 3000] [--draws 5 1 1 1] [--epochs 100]
        [--data-dir FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data import Data, load
from pyro_vae.models.auxiliary import ADGM, SDGM
from pyro_vae.models.semi_supervised import M2
from pyro_vae.models.stacked import M1M2

MODELS = {"m2": M2, "m1m2": M1M2, "adgm": ADGM, "sdgm": SDGM}
#: Steps of the classifier on the labels alone, on batches of at most 100 images.
ALONE = 3000


def accuracy(probabilities: Tensor, y: Tensor) -> float:
    """Share of labels that are found, in percent."""
    return 100 * float((probabilities.argmax(-1) == y).double().mean())


def shown(options: argparse.Namespace, count: int, draw: int) -> Data:
    """MNIST of which ``count`` training images have a label."""
    data = load("mnist", data_dir=options.data_dir, download=False, val_size=0, labels=count, label_seed=draw)
    if options.train_size is None:
        return data
    rest = (data.train.y < 0).nonzero()[: options.train_size - count, 0]
    return Data(
        data.name, data.train.take(torch.cat([(data.train.y >= 0).nonzero()[:, 0], rest])), None, data.test, True
    )


def fit(model: nn.Module, data: Data, options: argparse.Namespace, draw: int, epochs: int, **more: Any) -> None:
    """Train a model, its output bias first set to the data's mean."""
    pv.fit(
        model, data, epochs=epochs, batch_size=options.batch_size, lr=options.lr, seed=draw, progress=False,
        lr_schedule="cosine", **more,
    )  # fmt: skip


def alone(network: nn.Module, x: Tensor, y: Tensor, test: Tensor, features: Any, draw: int, lr: float) -> Tensor:
    """The class probabilities of the test images by a classifier that is trained on the labelled images alone."""
    torch.manual_seed(draw)
    optim = torch.optim.Adam(network.parameters(), lr)
    for _ in range(ALONE):
        rows = torch.randint(len(x), (min(100, len(x)),))
        loss = nn.functional.cross_entropy(network(features(torch.bernoulli(x[rows]))), y[rows])
        optim.zero_grad()
        loss.backward()
        optim.step()
    with torch.no_grad():
        return network(features(test)).softmax(-1)


def run(name: str, count: int, draw: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and its classifier alone."""
    started, data = time.perf_counter(), shown(options, count, draw)
    torch.manual_seed(draw)
    shape, hidden = data.data_shape, options.hidden
    make = MODELS[name](
        shape, options.latent_dim, hidden, options.activation, num_classes=10, classifier_weight=options.alpha
    )
    make.center_output(*data.moments())
    if name == "m1m2":
        below = pv.VAE(shape, options.latent_dim, hidden, options.activation)
        below.center_output(*data.moments())
        fit(below, data, options, draw, options.epochs)
        make.stand_on(below)
    fit(make, data, options, draw, options.epochs, labelled_per_batch=options.per_batch)
    known = data.train.y >= 0
    torch.manual_seed(draw)
    fresh = MODELS[name](shape, options.latent_dim, hidden, options.activation, num_classes=10).classifier
    if name == "m1m2":
        features = lambda x: below.encode(x).mean.detach()  # noqa: E731
    elif name == "m2":
        features = lambda x: x  # noqa: E731
    else:  # what they add is the auxiliary vector: without it, the classifier of M2
        fresh = M2(shape, options.latent_dim, hidden, options.activation, num_classes=10).classifier
        features = lambda x: x  # noqa: E731
    found = alone(fresh, data.train.x[known], data.train.y[known], data.test.x, features, draw, options.lr)
    elbo = pv.elbo("enum", max_plate_nesting=1)
    unknown = torch.full((1000,), -1)
    with torch.no_grad():
        bound = elbo.bound(make.model, make.guide, data.test.x[:1000], unknown)
    return {
        "model": name, "labels": count, "draw": draw,
        "accuracy": accuracy(make.classify(data.test.x), data.test.y), "alone": accuracy(found, data.test.y),
        "elbo": float(bound.mean()), "elbo_std_error": float(bound.std() / math.sqrt(1000)),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def spread(values: list[float]) -> str:
    """Mean and, of several, its standard error."""
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{error}"


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["m2", "m1m2"])
    parser.add_argument("--labels", nargs="+", type=int, default=[100, 600, 1000, 3000])
    parser.add_argument(
        "--draws", nargs="+", type=int, default=[5, 1, 1, 1], help="label draws of each number of labels"
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--per-batch", type=int, default=20, help="labelled images of every batch")
    parser.add_argument("--train-size", type=int, help="take so many training images only")
    parser.add_argument("--hidden", nargs="+", type=int, default=[500])
    parser.add_argument("--activation", default="softplus")
    parser.add_argument("--latent-dim", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the classifier's term")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/semi_supervised"))
    options = parser.parse_args()
    if len(options.draws) != len(options.labels):
        parser.error(f"--draws: expected one for each of {len(options.labels)} numbers of labels, got {options.draws}.")
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        "| model | labels | accuracy, % | classifier on the labels alone, % | ELBO of 1,000 test images, nats | label draws |"
    )
    print("|---|---|---|---|---|---|")
    for name in options.models:
        for count, draws in zip(options.labels, options.draws, strict=True):
            rows = []
            for draw in range(draws):
                size = options.train_size or "all"
                words = (name, count, draw, options.epochs, size, options.alpha, options.per_batch)
                file = options.out / ("-".join(map(str, words)) + ".json")
                if not file.exists():
                    file.write_text(json.dumps(run(name, count, draw, options)))
                rows.append(json.loads(file.read_text()))
            columns = (spread([row[key] for row in rows]) for key in ("accuracy", "alone", "elbo"))
            print(f"| {name} | {count} | {' | '.join(columns)} | {draws} |", flush=True)


if __name__ == "__main__":
    main()
