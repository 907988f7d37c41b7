"""Noise taken off, and hidden pixels filled: a plain VAE beside one that is trained for it.

    python examples/filling.py [--dataset mnist] [--data-dir DATA] [--parts denoising hidden] [--out FOLDER]

Prints the figures of docs/filling.md and writes its pictures to FOLDER. On the embedded digits it takes about two minutes. What
has been trained is kept in FOLDER as ``*.pt`` and not trained again.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.evidence import hidden_log_px, importance_sampling, inpaint
from pyro_vae.models.autoencoder import squared_error
from pyro_vae.models.denoising import DenoisingVAE, denoise
from pyro_vae.models.inpainting import InpaintingVAE, Partial
from pyro_vae.report.figures.inpainting import denoisings, fillings
from pyro_vae.report.figures.tiles import pick_rows
from pyro_vae.report.pictures import write_figure

NOISES = ("gaussian:0.5", "masking:0.5", "salt-and-pepper:0.4")
LATENT_DIM, HIDDEN = 16, (256,)
SHOWN = 10  # images of a picture


def trained(name: str, make: Callable[[], nn.Module], x: Tensor, options: argparse.Namespace) -> nn.Module:
    """A model trained on images x, or read from where an earlier call has kept it; in ``eval()`` mode."""
    path = options.out / f"{options.dataset}-{name}.pt"
    torch.manual_seed(0)
    model = make()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        if any(p.requires_grad for p in model.decoder.parameters()):
            model.center_output(x.mean(0), float((x - x.mean(0)).std()))
        pv.fit(model, x, epochs=options.epochs, lr=2e-3, lr_schedule="cosine", progress=False)
        torch.save(model.state_dict(), path)
    return model.eval()


def mean_and_error(values: Tensor) -> str:
    """Mean over data and its standard error."""
    return f"{float(values.mean()):.2f} ± {float(values.std()) / len(values) ** 0.5:.2f}"


def take_noise_off(train: Tensor, test: Split, options: argparse.Namespace) -> None:
    """Grey images: squared error against the clean ones."""
    size, x = tuple(train.shape[1:]), test.x[:1000]
    own = {"likelihood": "normal"}
    plain = trained("plain-grey", lambda: pv.VAE(size, LATENT_DIM, HIDDEN, **own), train, options)
    print(f"squared error against the clean image, summed over pixels, mean of {len(x):,} test images")
    print(f"{'noise':20} {'noisy':>15} {'VAE':>15} {'denoising VAE':>15}")
    for noise in NOISES:
        kind = noise.split(":")[0]
        make = lambda noise=noise: DenoisingVAE(size, LATENT_DIM, HIDDEN, noise=noise, **own)  # noqa: E731
        denoising = trained(kind, make, train, options)
        torch.manual_seed(1)
        noisy = denoising.corrupt(x)
        found = [noisy, *(denoise(model, noisy) for model in (plain, denoising))]
        errors = [mean_and_error(squared_error(images, x, x.dim() - 1)) for images in found]
        print(f"{noise:20} " + " ".join(f"{error:>15}" for error in errors))
        torch.manual_seed(0)
        rows = pick_rows(Split(x, None if test.y is None else test.y[: len(x)]), SHOWN)
        figure = denoisings({"VAE": plain, "denoising VAE": denoising}, x[rows], noisy[rows], noise)
        write_figure(options.out / f"{options.dataset}-{kind}.png", figure)


def fill_hidden(train: Tensor, test: Split, options: argparse.Namespace) -> None:
    """Binary images: the lower half from the upper one."""
    size, train = tuple(train.shape[1:]), (train > 0.5).float()
    x = (test.x[: options.hidden_images] > 0.5).float()
    plain = trained("plain", lambda: pv.VAE(size, LATENT_DIM, HIDDEN), train, options)
    frozen = copy.deepcopy(plain.decoder).requires_grad_(False)
    own = {"mask": options.mask}
    models = {
        "VAE": plain,
        "its decoder, encoder on masks": trained(
            "encoder-on-masks", lambda: InpaintingVAE(size, LATENT_DIM, HIDDEN, decoder=frozen, **own), train, options
        ),
        "both trained on masks": trained(
            "both-on-masks", lambda: InpaintingVAE(size, LATENT_DIM, HIDDEN, **own), train, options
        ),
    }
    visible = torch.ones(size, dtype=torch.bool)
    visible[:, size[-2] // 2 :] = False
    shown = pick_rows(Split(x, None if test.y is None else test.y[: len(x)]), SHOWN)
    torch.manual_seed(0)
    print(f"lower half hidden, {len(x)} test images, nats per image; log p(x_V): the encoder as it is, then refined")
    for name, model in models.items():
        partial = Partial(model)
        raw = importance_sampling(partial.model, partial.guide, x, visible, num_samples=1000, seed=0).summary()
        hidden = hidden_log_px(model, x, visible, num_samples=options.num_samples, num_steps=options.steps, seed=0)
        ok = hidden.reliable
        error = float(hidden.std_error[ok].square().sum().sqrt() / ok.sum())
        found = inpaint(model, x, visible, num_steps=options.steps, seed=0)
        print(
            f"{name}\n"
            f"  ELBO of x_V {raw.elbo:.2f}, k too large for {raw.pareto_k_bad}; refined, log p(x_V) "
            f"{mean_and_error(hidden.visible.log_px)}, k too large for {int((~hidden.visible.reliable).sum())}\n"
            f"  log p(x_H | x_V) {mean_and_error(hidden.log_px)}; of the {int(ok.sum())} that can be trusted "
            f"{mean_and_error(hidden.log_px[ok])}, Monte Carlo error {error:.3f}\n"
            f"  squared error of E[x_H | x_V] {mean_and_error(squared_error(found.mean, x, x.dim() - 1))}"
        )
        figure = fillings(x[shown], visible, inpaint(model, x[shown], visible, num_steps=options.steps, seed=0))
        write_figure(options.out / f"{options.dataset}-filled-{name.split()[0].lower()}.png", figure)
    chains = inpaint(plain, x[shown], visible, method="hmc", num_steps=options.steps, seed=0)
    write_figure(options.out / f"{options.dataset}-filled-hmc.png", fillings(x[shown], visible, chains))
    p = train.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(p).log_prob(x)[:, ~visible].sum(-1)
    print(f"independent pixels at their frequencies\n  log p(x_H) {mean_and_error(independent)}")


PARTS = {"denoising": take_noise_off, "hidden": fill_hidden}


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="a named set of grey images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, help="so many training images; default: all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--mask", default="half", help="of the training on masks: half, square or pixels")
    parser.add_argument("--hidden-images", type=int, default=100, help="test images whose hidden pixels are scored")
    parser.add_argument("--num-samples", type=int, default=5000, help="K of the log-likelihoods")
    parser.add_argument("--steps", type=int, default=200, help="of the refinements and of the chains")
    parser.add_argument("--out", type=Path, default=Path("filling"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = pv.data.load(options.dataset, data_dir=options.data_dir, mode="none", val_size=0)
    assert data.test is not None
    for part in options.parts:
        PARTS[part](data.train.x[: options.images], data.test, options)


if __name__ == "__main__":
    main()
