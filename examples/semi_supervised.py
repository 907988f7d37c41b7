"""Models that know labels: digits of a class and of a style on demand, and a classifier from a few labels.

    python examples/semi_supervised.py [--dataset mnist] [--data-dir DATA] [--parts conditional labels] [--out FOLDER]

Prints the figures of docs/semi-supervised.md and writes its pictures to FOLDER. On the embedded digits it takes about a minute.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.data import Data, Split
from pyro_vae.models.base import mean_image
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.semi_supervised import ADGM, M1, M1M2, M2, SDGM
from pyro_vae.report.figures.images import analogies, samples
from pyro_vae.report.figures.tiles import tiles
from pyro_vae.report.pictures import write_figure

MODELS: dict[str, Any] = {"m1": M1, "m2": M2, "m1m2": M1M2, "auxiliary": ADGM, "sdgm": SDGM}


def draw_conditional(data: Data, test: Split, options: argparse.Namespace) -> None:
    """Samples of each class, and the analogy picture: the style of an image with every label."""
    torch.manual_seed(0)
    model = Conditional(data.data_shape, 6, (256, 256), "relu", num_classes=10)
    model.center_output(*data.moments())
    pv.fit(model, data, epochs=options.epochs, batch_size=64, lr_schedule="cosine", progress=False)
    few = Split(test.x[:500], test.y[:500])
    found = pv.evidence.importance_sampling(model.model, model.guide, *few, num_samples=500, seed=0).summary()
    print(f"conditional: log p(x|y) {found.log_px:.2f} ± {found.std_error:.2f} nats, {len(few.x)} test images")
    torch.manual_seed(0)
    with torch.no_grad():
        write_figure(options.out / f"{data.name}-samples.png", samples(model, test, "test"))
        write_figure(options.out / f"{data.name}-analogies.png", analogies(model, test, "test"))


def share(found: Tensor, y: Tensor) -> str:
    """Share of labels that are found, in percent, with its binomial standard error."""
    p = float((found == y).double().mean())
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(y)):.1f} %"


def draw_labels(data: Data, test: Split, options: argparse.Namespace) -> None:
    """The models with a classifier, on the same few labels: accuracy, log p(x) summed over labels, one row of the picture."""
    torch.manual_seed(0)
    alone = M2(data.data_shape, 10, (200,), "relu", num_classes=10).classifier
    known = data.train.y >= 0
    optim = torch.optim.Adam(alone.parameters(), 1e-3)
    for _ in range(1000):  # the classifier of m2, on the labelled images alone
        logits = alone(torch.bernoulli(data.train.x[known]))
        optim.zero_grad()
        torch.nn.functional.cross_entropy(logits, data.train.y[known]).backward()
        optim.step()
    print(f"{int(known.sum())} labels among {len(known):,} images; {len(test.x):,} test images")
    print(f"{'classifier of m2 alone':24} accuracy {share(alone(test.x).argmax(-1), test.y)}")
    few, rows = test.x[:180], {}
    for name, kind in MODELS.items():
        torch.manual_seed(0)
        model = kind(data.data_shape, 10, (200,), "relu", num_classes=10)
        model.center_output(*data.moments())
        how = {"labelled_per_batch": 20, "lr_schedule": "cosine", "compile": False, "progress": False}
        pv.fit(model, data, epochs=options.epochs, batch_size=100, **how)
        classes = model.classify(test.x)
        unknown = torch.full((len(few),), -1)
        found = pv.evidence.importance_sampling(model.model, model.guide, few, unknown, num_samples=200, seed=0)
        line = found.summary()
        print(
            f"{name:24} accuracy {share(classes.argmax(-1), test.y)}   "
            f"log p(x) {line.log_px:.2f} ± {line.std_error:.2f} nats, {len(few)} images"
        )
        rows[name] = (model, classes)
    write_figure(options.out / f"{data.name}-labels.png", of_labels(rows, test))


@torch.no_grad()
def of_labels(rows: dict[str, Any], test: Split) -> Figure:
    """For each model the test image that it is surest of, by label; and an image that it makes of each label."""
    parts = []
    for model, classes in rows.values():
        y = torch.arange(10)
        if hasattr(model, "analogies"):
            made = mean_image(model.decode(model.prior().sample((10,)), y))
        else:  # m1 cannot be told a label: of 500 draws those that its classifier is surest of
            z = model.prior().sample((500,))
            made = mean_image(model.decode(z[model.classifier(z).softmax(-1).argmax(0)]))
        parts += [test.x[classes.argmax(0)], made]
    figure, axes = tiles(torch.cat(parts), [*range(10), *(10.5 + k for k in range(10))], range(len(rows)))
    axes.set_yticks([k + 0.5 for k in range(len(rows))], list(rows))
    axes.set_xticks([k + 0.5 for k in range(10)] + [k + 11.0 for k in range(10)], [str(k) for k in [*range(10)] * 2])
    axes.set_xlabel(
        "the test image that is most surely of each label;   an image made of each label, the mean of p(x|z, y) at a draw z ~ "
        "p(z) (m1: of p(x|z), at the surest of 500)"
    )
    return figure


PARTS = {"conditional": draw_conditional, "labels": draw_labels}


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="a named set with ten labels")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--labels", type=int, default=50, help="how many labels are known, in `labels`")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("semi_supervised"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        how: dict[str, Any] = {"labels": options.labels} if part == "labels" else {"mode": "threshold"}
        data = pv.data.load(options.dataset, data_dir=options.data_dir, val_size=0, **how)
        assert data.test is not None
        PARTS[part](Data(data.name, data.train, redraw=data.redraw), data.test, options)


if __name__ == "__main__":
    main()
