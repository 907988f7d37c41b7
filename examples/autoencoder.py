"""Why VAEs exist: an autoencoder beside VAEs at beta 0, 1 and 4; PCA beside a linear autoencoder; images in a few numbers.

    python examples/autoencoder.py [--dataset mnist] [--data-dir DATA] [--parts planes linear codes] [--out FOLDER]

Prints the figures of docs/autoencoders.md and writes its pictures to FOLDER. On the embedded digits it takes about a minute.
What has been trained is kept in FOLDER as ``*.pt`` and not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.linalg import subspace_angles
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data import Data, Split
from pyro_vae.evidence import aggregate_posterior
from pyro_vae.models.autoencoder import Autoencoder, squared_error
from pyro_vae.models.base import mean_image
from pyro_vae.models.linear import LinearVAE
from pyro_vae.report.figures.autoencoders import codes, planes
from pyro_vae.report.pictures import write_figure

BETAS = (0.0, 1.0, 4.0)
POINTS = 5000  # test images, at most, whose codes are compared with the prior


def trained(path: Path, make: Callable[[], nn.Module], data: Data, **options: object) -> nn.Module:
    """A model trained on the training images, or read from where an earlier call has kept it; in ``eval()`` mode."""
    torch.manual_seed(0)
    model = make()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        model.center_output(*data.moments())
        pv.fit(model, data, progress=False, **options)
        torch.save(model.state_dict(), path)
    return model.eval()


def mean_and_error(values: Tensor) -> str:
    """Mean over data and its standard error."""
    return f"{float(values.mean()):.2f} ± {float(values.std()) / len(values) ** 0.5:.2f}"


@torch.no_grad()
def reconstructed(model: nn.Module, x: Tensor) -> Tensor:
    """Squared error of E[x | z] at the mean z of q(z|x), summed over pixels: shape ``(N,)``."""
    return squared_error(mean_image(model.decode(model.encode(x).mean)), x, x.dim() - 1)


def draw_planes(data: Data, test: Split, options: argparse.Namespace) -> None:
    """Autoencoder and VAEs of two numbers."""
    size, hidden, how = data.data_shape, (256, 128), {"epochs": options.epochs, "lr": 1e-3, "lr_schedule": "cosine"}
    stem = f"{options.name}-plane"

    def autoencoder() -> nn.Module:
        return Autoencoder(size, 2, hidden, "relu")

    def vae() -> nn.Module:
        return pv.VAE(size, 2, hidden, "relu", likelihood="normal")

    models = {"autoencoder": trained(options.out / f"{stem}-autoencoder.pt", autoencoder, data, **how)}
    for beta in BETAS:
        models[f"VAE, beta {beta:g}"] = trained(options.out / f"{stem}-{beta:g}.pt", vae, data, beta=beta, **how)
    print(f"two numbers for each image; squared error, mean of {len(test.x):,} test images; KL in nats, of {POINTS:,}")
    print(f"{'':14} {'squared error':>14} {'std of the codes':>17} {'KL(q(z|x) || p)':>16} {'KL(q(z) || p)':>15}")
    for name, model in models.items():
        with torch.no_grad():
            spread = model.encode(test.x).mean.std(0).tolist()
        words = f"{name:14} {mean_and_error(reconstructed(model, test.x)):>14} {spread[0]:>11.1f}, {spread[1]:.1f}"
        if hasattr(model, "prior"):
            kl = aggregate_posterior(model.model, model.guide, test.x[:POINTS], seed=0)
            words += f"  {kl.rate:>10.2f} ± {kl.rate_error:.2f} {kl.marginal_kl:>9.2f} ± {kl.marginal_kl_error:.2f}"
        print(words)
    torch.manual_seed(0)
    write_figure(options.out / f"{options.name}-planes.png", planes(models, test, "test"))


def compare_linear(data: Data, test: Split, options: argparse.Namespace) -> None:
    """A linear autoencoder's axes against PCA's."""
    size, num = data.data_shape, options.latent_dim
    pca = LinearVAE(size, num)
    pca.maximize_likelihood(data.train.x)
    # All data at each step: nothing is random, and it goes to the minimum.
    how = {"epochs": options.linear_epochs, "batch_size": len(data.train.x), "lr": 0.01, "lr_schedule": "cosine"}
    path = options.out / f"{options.name}-linear-{num}.pt"
    linear = trained(path, lambda: Autoencoder(size, num, ()), data, **how)
    axes = linear.decoder.head.weight.detach().double()
    axes = axes / axes.norm(dim=0)
    cosines = (axes.T @ axes - torch.eye(num)).abs()
    ours = pca.weight.detach().double()
    theirs = ours / ours.norm(dim=0)
    orthogonal = (theirs.T @ theirs - torch.eye(num)).abs()
    centred = (test.x - pca.decoder.head.bias.reshape(size)).flatten(1).double().detach()
    basis = torch.linalg.qr(ours).Q
    error = (centred - centred @ basis @ basis.T).square().sum(-1)
    print(
        f"linear autoencoder against PCA, {num} numbers: largest angle between the subspaces "
        f"{float(subspace_angles(axes, ours).max()):.1e} radians\n"
        f"largest |cosine| of two axes: PCA {float(orthogonal.max()):.1e}, autoencoder {float(cosines.max()):.2f}\n"
        f"squared error, test: PCA {mean_and_error(error)}, autoencoder {mean_and_error(reconstructed(linear, test.x))}"
    )


def draw_codes(data: Data, test: Split, options: argparse.Namespace) -> None:
    """Images, the few numbers that each becomes, and what is made of these again."""
    size, num = data.data_shape, options.latent_dim
    how = {"epochs": options.code_epochs, "batch_size": 64, "lr": 2e-3, "lr_schedule": "cosine"}
    made = {
        "VAE": lambda: pv.VAE(size, num, (256,), likelihood="normal"),
        "autoencoder": lambda: Autoencoder(size, num, (256,)),
    }
    for name, make in made.items():
        model = trained(options.out / f"{options.name}-codes-{name}-{num}.pt", make, data, **how)
        train, error = (mean_and_error(reconstructed(model, x)) for x in (data.train.x, test.x))
        print(
            f"{options.name} in {num} numbers, {name}: squared error {error}, mean of {len(test.x):,} test images; of "
            f"training images {train}"
        )
        torch.manual_seed(0)
        rows = torch.randperm(len(test.x))[:10]
        figure = codes(model, test.x[rows], f"{name}: {options.name}")
        write_figure(options.out / f"{options.name}-codes-{name.lower()}.png", figure)


PARTS = {"planes": draw_planes, "linear": compare_linear, "codes": draw_codes}


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="a named set or a file; grey images")
    parser.add_argument("--name", help="what pictures and lines call it; default: the name of the set or file")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, help="so many training images; default: all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--epochs", type=int, default=60, help="of the planes")
    parser.add_argument("--linear-epochs", type=int, default=4000, help="of the linear autoencoder, one step each")
    parser.add_argument("--code-epochs", type=int, default=100, help="of the codes")
    parser.add_argument("--latent-dim", type=int, default=6, help="how many numbers, in `linear` and `codes`")
    parser.add_argument("--out", type=Path, default=Path("autoencoder"))
    options = parser.parse_args()
    options.name = options.name or Path(options.dataset).stem
    options.out.mkdir(parents=True, exist_ok=True)
    data = pv.data.load(options.dataset, data_dir=options.data_dir, mode="none", val_size=0)
    assert data.test is not None
    x, y = data.train
    train = Split(x[: options.images], None if y is None else y[: options.images])
    for part in options.parts:
        PARTS[part](Data(data.name, train), data.test, options)


if __name__ == "__main__":
    main()
