"""Accuracy on MNIST from a few labels: `m2`, `m1m2` and the auxiliary models, beside their classifier on the labels alone.

All training images are there, without labels but for the balanced few that `--labels` and the draw's number choose; images
are binarized afresh for every batch. The model's classifier starts where 1,000 steps on the labelled images alone bring it;
the column "classifier alone" is the same classifier trained so for as many steps as the model is in all. Of `m2` it is a
small convolutional network that sees its training images slightly turned, sheared, scaled and shifted (`Warp`). Of `m1m2`
it is a perceptron of draws of q(z|x), the VAE below trained once, without labels, kept for all runs and frozen. Of
`m1m2-joint` all layers train on from there together, the convolutional encoder too, on images and warped copies of them, and
"classifier alone" is encoder and classifier from nothing. Of `adgm` and `sdgm` it is a perceptron, with the auxiliary vector
set to 0 while it is alone. Accuracy is that of the last epoch on the test images, by which nothing is chosen: to choose, pass
`--hold-out 5000`, which leaves so many training images out and scores by them. A mean over label draws has its standard
error, one draw the binomial one. A run that is there is read, not repeated.

    python benchmarks/semi_supervised.py [--models m2 m1m2] [--labels 100 600 1000 3000] [--draws 5 1 1 1] [--epochs 15]
        [--data-dir FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import pyro_vae as pv
from pyro_vae.data import Data, load
from pyro_vae.data.dataset import Split
from pyro_vae.models.semi_supervised import ADGM, M1M2, M2, SDGM

MODELS = {"m2": M2, "m1m2": M1M2, "m1m2-joint": M1M2, "adgm": ADGM, "sdgm": SDGM}
#: Warped copies of each labelled image, and of each other one, that m1m2-joint is given.
COPIES = (60, 1)


class Warp(nn.Module):
    """In train mode, each image turned, sheared, scaled and shifted by a little, at random; in eval mode, none.

    Args:
        turn: Radians, at most.
        shear: Pixels a pixel, at most.
        scale: Relative, of width and height each, at most.
        shift: Share of half the image's side, at most.
    """

    def __init__(self, turn: float = 0.2, shear: float = 0.2, scale: float = 0.1, shift: float = 1 / 7) -> None:
        super().__init__()
        self.turn, self.shear, self.scale, self.shift = turn, shear, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape ``(B, 1, H, W)``, warped."""
        if not self.training:
            return x
        turn, shear, wide, high, right, down = 2 * torch.rand(6, len(x), device=x.device, dtype=x.dtype) - 1
        cos, sin = (self.turn * turn).cos(), (self.turn * turn).sin()
        wide, high, shear = 1 + self.scale * wide, 1 + self.scale * high, self.shear * shear
        first = torch.stack([wide * cos, shear * wide * cos - high * sin, self.shift * right], -1)
        second = torch.stack([wide * sin, shear * wide * sin + high * cos, self.shift * down], -1)
        grid = functional.affine_grid(torch.stack([first, second], -2), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)


class Convolutional(nn.Module):
    """The classifier of images: warped, two strided convolutions, a hidden layer of 128, with dropout; made as an MLP is."""

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], *_: Any, dropout: float = 0.3) -> None:
        super().__init__()
        channels, height, width = in_shape
        rest = 32 * -(-height // 4) * -(-width // 4)
        self.layers = nn.Sequential(
            Warp(), nn.Conv2d(channels, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Dropout(dropout), nn.Linear(rest, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, *out_shape),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape ``(..., C, H, W)`` to logits, shape ``(..., 10)``."""
        return self.layers(x.flatten(0, -4)).unflatten(0, x.shape[:-3])


class Encoder(nn.Module):
    """The encoder of m1m2-joint: two strided convolutions and a hidden layer of 256; made as an MLP is."""

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], *_: Any) -> None:
        super().__init__()
        channels, height, width = in_shape
        rest = 32 * -(-height // 4) * -(-width // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(rest, 256), nn.ReLU(), nn.Linear(256, *out_shape),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape ``(..., C, H, W)`` to parameters, shape ``(..., *out_shape)``."""
        return self.layers(x.flatten(0, -4)).unflatten(0, x.shape[:-3])


def with_copies(data: Data, draw: int) -> Data:
    """The training images and warped copies of them, which have the labels of their originals."""
    x, y = data.train.x, data.train.y
    known, warp = y >= 0, Warp().train()
    torch.manual_seed(draw)
    parts = [x, *(warp(x[known]) for _ in range(COPIES[0])), *(warp(x[~known]) for _ in range(COPIES[1]))]
    labels = [y, *[y[known]] * COPIES[0], *[y[~known]] * COPIES[1]]
    return dataclasses.replace(data, train=Split(torch.cat(parts).clamp(0, 1), torch.cat(labels)))


def shown(name: str, options: argparse.Namespace, count: int, draw: int) -> tuple[Data, Split]:
    """MNIST of which ``count`` training images have a label; and the images that are scored."""
    data = load(
        "mnist", data_dir=options.data_dir, download=False, val_size=options.hold_out, labels=count, label_seed=draw
    )
    scored = data.test if data.validation is None else data.validation
    assert scored is not None
    known = data.train.y >= 0
    rest = (~known).nonzero()[: None if options.train_size is None else options.train_size - count, 0]
    train = data.train.take(torch.cat([known.nonzero()[:, 0], rest]))
    data = dataclasses.replace(data, train=train, validation=None, test=None)
    return with_copies(data, draw) if name == "m1m2-joint" else data, scored


def fit(model: nn.Module, data: Data, options: argparse.Namespace, seed: int, epochs: int, **more: Any) -> None:
    """Train a model, its learning rate falling to 0 by a cosine."""
    how = {"batch_size": options.batch_size, "lr": options.lr, "lr_schedule": "cosine"} | more
    pv.fit(model, data, epochs=epochs, seed=seed, progress=False, **how)


def vae_below(name: str, data: Data, options: argparse.Namespace) -> pv.VAE:
    """The VAE on whose latent vectors m1m2 stands, trained once without labels and kept."""
    more: dict[str, Any] = {"encoder": Encoder} if name == "m1m2-joint" else {}
    vae = pv.VAE(data.data_shape, options.latent_dim, (500, 500), "relu", **more)
    kind = "convolutional-" if more else ""
    file = options.out / f"below-{kind}{options.latent_dim}-{options.below_epochs}-{len(data.train.x)}.pt"
    if file.exists():
        vae.load_state_dict(torch.load(file, weights_only=True))
        return vae.eval()
    torch.manual_seed(0)
    vae = pv.VAE(data.data_shape, options.latent_dim, (500, 500), "relu", **more)
    vae.center_output(*data.moments())
    # Without a warm-up the convolutional encoder is given up in the first steps: rate 0, and no way back.
    warm = {"beta": pv.schedules.linear(0.0, 1.0, steps=400)} if more else {}
    fit(vae, data, options, 0, options.below_epochs, batch_size=200, **warm)
    torch.save(vae.state_dict(), file)
    return vae


def make(name: str, data: Data, options: argparse.Namespace, below: bool = True) -> nn.Module:
    """A model of MNIST, its output bias at the data's mean; ``below``: m1m2 stands on a trained VAE."""
    more: dict[str, Any] = {"classifier": Convolutional} if name == "m2" else {}
    model = MODELS[name](
        data.data_shape, options.latent_dim, (options.hidden,), "relu", num_classes=10, classifier_weight=options.alpha,
        **more,
    )  # fmt: skip
    if below and name.startswith("m1m2"):
        model.stand_on(vae_below(name, data, options), frozen=name == "m1m2")
    else:
        model.center_output(*data.moments())
    return model


def logits_of(name: str, model: Any) -> Callable[[Tensor], Tensor]:
    """The model's classifier as a function of images alone."""
    if name == "m2":
        return lambda x: model.classifier(x)
    if name.startswith("m1m2"):
        return lambda x: model.classifier(model.posterior(model.encoder(x)).rsample())
    return lambda x: model.classifier(x, x.new_zeros(len(x), model.latent_dim))


def alone(parts: nn.Module, logits: Callable[[Tensor], Tensor], data: Data, lr: float, steps: int, fall: bool) -> None:
    """Train a classifier's parts on the labelled images alone, 100 a step, binarized afresh; ``fall``: lr goes to 0."""
    known = data.train.y >= 0
    x, y = data.train.x[known], data.train.y[known]
    optim = torch.optim.Adam(parts.parameters(), lr)
    parts.train()
    for step in range(steps):
        optim.param_groups[0]["lr"] = lr * (0.5 + 0.5 * math.cos(math.pi * step / steps) if fall else 1.0)
        rows = torch.randint(len(x), (100,))
        loss = functional.cross_entropy(logits(torch.bernoulli(x[rows])), y[rows])
        optim.zero_grad()
        loss.backward()
        optim.step()
    parts.eval()


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], scored: Split) -> float:
    """Share of labels that are found, in percent."""
    found = torch.cat([classify(part).argmax(-1) for part in scored.x.split(1000)])
    return 100 * float((found == scored.y).double().mean())


def averaged(name: str, logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Class probabilities; of draws of q(z|x) the mean over 16, as ``classify`` of m1m2."""
    return lambda x: torch.stack([logits(x).softmax(-1) for _ in range(16 if name.startswith("m1m2") else 1)]).mean(0)


def run_alone(name: str, count: int, draw: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train the classifier of a model on the labelled images alone, for as many steps as the model has in all."""
    data, scored = shown(name, options, count, draw)
    torch.manual_seed(draw)
    joint = name == "m1m2-joint"  # whose classifier is all from the image on
    model: Any = make(name, data, options, below=not joint).eval()
    others = math.ceil(int((data.train.y < 0).sum()) / (options.batch_size - options.per_batch))
    steps = options.alone_steps + options.epochs * others
    parts = nn.ModuleList([model.encoder, model.posterior, model.classifier]) if joint else model.classifier
    alone(parts, logits_of(name, model), data, options.lr, steps, fall=True)
    return {"alone": accuracy(averaged(name, logits_of(name, model)), scored), "alone_steps": steps}


def run(name: str, count: int, draw: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model, its classifier first alone."""
    data, scored = shown(name, options, count, draw)
    torch.manual_seed(draw)
    model: Any = make(name, data, options).eval()
    started = time.perf_counter()
    logits = logits_of(name, model)
    alone(model.classifier, logits, data, options.lr, options.alone_steps, fall=False)
    before = accuracy(averaged(name, logits), scored)
    by_epoch: list[float] = []

    def score(training: Any) -> None:
        model.eval()
        by_epoch.append(accuracy(model.classify, scored))
        print(f"{name} {count} {draw}: {before:.2f} alone, {by_epoch[-1]:.2f} % at epoch {len(by_epoch)}", flush=True)

    callbacks = [score] if options.hold_out else []  # the test images are looked at once
    fit(model, data, options, draw, options.epochs, labelled_per_batch=options.per_batch, callbacks=callbacks)
    elbo, unknown = pv.elbo("enum", max_plate_nesting=1), torch.full((1000,), -1)
    with torch.no_grad():
        bound = elbo.bound(model.model, model.guide, scored.x[:1000], unknown)
    return {
        "model": name, "labels": count, "draw": draw, "scored": len(scored.x), "start": before,
        "accuracy": accuracy(model.classify, scored), "elbo": float(bound.mean()),
        "elbo_std_error": float(bound.std() / math.sqrt(len(bound))), "by_epoch": by_epoch,
        "seconds": time.perf_counter() - started,
        "settings": {k: v for k, v in vars(options).items() if isinstance(v, (int, float, str))},
    }  # fmt: skip


def percent(rows: list[dict[str, Any]], key: str) -> str:
    """Mean over label draws with its standard error; of one draw the binomial one."""
    values = [row[key] for row in rows]
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.2f} ± {math.sqrt(mean * (100 - mean) / rows[0]['scored']):.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def nats(rows: list[dict[str, Any]]) -> str:
    """The ELBO, with its standard error over data."""
    return f"{statistics.fmean(row['elbo'] for row in rows):.2f} ± {rows[0]['elbo_std_error']:.2f}"


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["m2", "m1m2"])
    parser.add_argument("--labels", nargs="+", type=int, default=[100, 600, 1000, 3000])
    parser.add_argument("--draws", nargs="+", type=int, default=[5, 1, 1, 1], help="label draws of each number")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--below-epochs", type=int, default=40, help="of the VAE below m1m2")
    parser.add_argument("--alone-steps", type=int, default=1000, help="of the classifier on the labels alone")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--per-batch", type=int, default=10, help="labelled images of every batch")
    parser.add_argument("--train-size", type=int, help="take so many training images only")
    parser.add_argument("--hold-out", type=int, default=0, help="training images to leave out and to score by")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the classifier's term")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/semi_supervised"))
    parser.add_argument(
        "--only-alone", action="store_true", help="train no model, but classifiers of those that are there"
    )
    parser.add_argument("--only-read", action="store_true", help="print the table of the runs that are there")
    options = parser.parse_args()
    if len(options.draws) != len(options.labels):
        parser.error(f"--draws: expected one for each of {len(options.labels)} numbers of labels, got {options.draws}.")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| model | labels | accuracy, % | its start, % | classifier alone, % | ELBO of 1,000 images, nats | label draws |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name in options.models:
        for count, draws in zip(options.labels, options.draws, strict=True):
            rows = [row for draw in range(draws) if (row := kept(name, count, draw, options)) is not None]
            if rows:
                figures = (*(percent(rows, key) for key in ("accuracy", "start", "alone")), nats(rows), str(len(rows)))
                lines.append(f"| {name} | {count:,} | {' | '.join(figures)} |")
    print("\n".join(lines))


def kept(name: str, count: int, draw: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """A run's figures, from its two files, or by training; None where it may not and they are not there."""
    told = ("epochs", "train_size", "hold_out", "alpha", "hidden", "latent_dim", "batch_size", "per_batch", "lr")
    words = "-".join([name, str(count), str(draw), *(str(getattr(options, key)) for key in told)])
    found: dict[str, Any] = {}
    for train, file in ((run, options.out / f"{words}.json"), (run_alone, options.out / f"alone-{words}.json")):
        if not file.exists():
            if options.only_read or (options.only_alone and train is run):
                return None
            file.write_text(json.dumps(train(name, count, draw, options)))
        found |= json.loads(file.read_text())
    print(f"{name} {count} {draw}: {found['accuracy']:.2f} %, alone {found['alone']:.2f} %", flush=True)
    return found


if __name__ == "__main__":
    main()
