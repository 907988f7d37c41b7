"""The picture of the README: samples, reconstructions and a map of the codes of a trained run.

Usage: ``python examples/mnist_grid.py RUN docs/pictures/mnist.png``
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.manifold import TSNE

import pyro_vae as pv

run = pv.load(sys.argv[1])
vae, test = run.vae, run.data().test
torch.manual_seed(0)
x, y = test[:2000]
shown = x[:50]
with torch.no_grad():
    samples = vae.decode(vae.prior().sample((100,))).mean
    rebuilt = vae.reconstruct(shown)
    codes = TSNE(init="pca", random_state=0).fit_transform(vae.encode(x).mean.numpy())


def tiles(images: torch.Tensor) -> torch.Tensor:
    """Images of shape ``(100, 1, H, W)`` as one of 10 by 10."""
    return images.reshape(10, 10, *images.shape[-2:]).permute(0, 2, 1, 3).reshape(10 * images.shape[-2], -1)


figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
pairs = torch.stack([shown.reshape(5, 10, *shown.shape[1:]), rebuilt.reshape(5, 10, *shown.shape[1:])], 1)
titles = ("samples from p(z)", "test images, each above its reconstruction", "codes of 2,000 test images (t-SNE)")
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()
for axis, images in zip(axes, (samples, pairs.reshape(100, *shown.shape[1:])), strict=False):
    axis.imshow(tiles(images), cmap="gray_r", vmin=0, vmax=1)
points = axes[2].scatter(*codes.T, c=y, cmap="tab10", s=4)
figure.legend(*points.legend_elements(), loc="outside right center", title="digit", frameon=False, fontsize=8)
figure.savefig(sys.argv[2], dpi=110)
