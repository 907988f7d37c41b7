"""Models, data and histories that the tests of pictures draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.data import Data, Split
from pyro_vae.evidence import Estimate
from pyro_vae.inference import History
from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.vae import VAE

IMAGES = ["reconstructions", "samples", "interpolations", "traversals"]


def make_vae(latent_dim: int, data_shape: tuple[int, ...] = (1, 8, 8), **options: object) -> VAE:
    """Untrained, with weights enlarged until the pictures of two latent vectors differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vae = VAE(data_shape, latent_dim, hidden=(32,), **options)
        with torch.no_grad():
            for p in vae.parameters():
                p.mul_(3)
    return vae


def make_history(elbo: list[float], beta: float = 1.0, validation: bool = True) -> History:
    rows = []
    for epoch, value in enumerate(elbo, start=1):
        row = {"epoch": epoch, "objective": value + 3 * (1 - beta), "train_elbo": value, "train_rate": 3.0}
        row |= {"train_distortion": -value - 3, "beta": beta}
        if validation:
            row |= {"validation_elbo": value - 1, "validation_elbo_std_error": 0.5}
            row |= {"validation_rate": 3.5, "validation_distortion": -value - 2.5}
        rows.append(row)
    return History(rows)


HISTORY = make_history([-30.0, -26.0, -25.0])


def vectors(count: int = 40, labels: bool = False) -> Data:
    x = torch.rand(count, 5, generator=torch.Generator().manual_seed(0))
    return Data("vectors", Split(x.round(), torch.arange(count) % 3 if labels else None))


def names(paths: list[Path]) -> list[str]:
    return [p.stem for p in paths]


def make_estimate(log_px: torch.Tensor, pareto_k: torch.Tensor, num_samples: int = 1000) -> Estimate:
    columns = [f.name for f in dataclasses.fields(Estimate) if f.name not in ("log_px", "pareto_k", "num_samples")]
    rest = dict.fromkeys(columns, torch.zeros_like(log_px)) | {
        "draws": torch.full(log_px.shape, num_samples),
        "num_pilot": 0,
    }
    return Estimate(log_px=log_px, pareto_k=pareto_k, num_samples=num_samples, **rest)


SHAPE = (1, 6, 5)


def binary_images(num: int = 40) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.bernoulli(torch.full((num, *SHAPE), 0.4))


def pair_of_models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    return {"autoencoder": Autoencoder(SHAPE, 2, (4,)).eval(), "VAE": pv.VAE(SHAPE, 2, (4,)).eval()}


def drawn_text(figure: Figure) -> str:
    figure.canvas.draw()
    texts = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_visible()]
    return "\n".join(texts)
