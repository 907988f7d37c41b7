"""A run in words, before it begins."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.batches import Mixed
from pyro_vae.data.labels import are_vectors
from pyro_vae.inference.kl.registry import CONTROLS
from pyro_vae.inference.training.batching import epoch_order
from pyro_vae.models.registry import MODELS, constructor_parameters
from pyro_vae.networks import MLP
from pyro_vae.networks.mlp import Joined
from pyro_vae.runs.build import fit_options
from pyro_vae.runs.config import Config
from pyro_vae.runs.pipeline import Prepared


def describe(prepared: Prepared, device_words: str) -> str:
    """What is about to be run, in three lines."""
    vae, config = prepared.vae, prepared.config
    count = sum(p.numel() for p in vae.parameters())
    order = epoch_order(vae, prepared.data, fit_options(config))
    labelled = f", {order.per_batch} with a label in each" if isinstance(order, Mixed) else ""
    steps = math.ceil(order.total / config.train.batch_size)
    return (
        f"pyro_vae {version('pyro-vae')}, torch {version('torch')}, Pyro {version('pyro-ppl')}, device {device_words}, "
        f"{torch.get_num_threads()} threads\n"
        f"{_data_words(prepared)}, binarize {prepared.data.binarize}\n"
        f"{_model_words(prepared)}, {count:,} parameters; "
        f"objective {_objective_words(config)}, {steps} steps an epoch{labelled}; {prepared.compiling}"
        + _stopped(prepared)
    )


def _model_words(prepared: Prepared) -> str:
    """The model with what its constructor takes."""
    config, vae = prepared.config, prepared.vae
    m, cls = config.model, type(vae)
    taken, hidden = constructor_parameters(cls), _widths(config, vae)
    words = {
        "latent_dim": f"latent_dim {m.latent_dim}",
        "hidden": "" if hidden is None else f"hidden {'-'.join(map(str, hidden))}" if hidden else "no hidden layer",
        "likelihood": f"{m.likelihood} likelihood",
        "num_classes": f"vectors of {m.num_classes}"
        if are_vectors(prepared.data.train.y)
        else f"{m.num_classes} classes",
        "encoder": f"encoder {m.encoder}" if m.encoder else "",
        "decoder": f"decoder {m.decoder}" if m.decoder else "",
    }
    said = [word for name, word in words.items() if name in taken and word]
    return f"{cls.__name__}: {', '.join([*said, *m.model_options])}"


def _widths(config: Config, vae: Any) -> tuple[int, ...] | None:
    """Of the encoder's hidden layers, which need not be those asked for (``below`` of m1m2); None where no network has some."""
    asked = config.model.hidden
    parts = getattr(vae, "encoder", vae).modules()
    encoder = next((part for part in parts if isinstance(part, MLP | Joined)), None)
    if encoder is None:
        some = any(len(part.layers) for part in vae.modules() if isinstance(part, MLP))
        return asked if some or config.model.model not in MODELS else None
    layers = [*getattr(encoder, "first", ())[:1], *encoder.layers]
    return tuple(layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear))


def _objective_words(config: Config) -> str:
    """The objective with what is asked of the KL besides."""
    t = config.train
    asked = [f"{name.replace('_', ' ')} {value}" for name in CONTROLS if (value := getattr(t, name)) is not None]
    weight = [] if t.beta == 1 else [f"beta {t.beta}"]
    return " with ".join([t.elbo, *([" and ".join([*weight, *asked])] if asked or weight else [])])


def _data_words(prepared: Prepared) -> str:
    data = prepared.data
    sizes = " x ".join(map(str, data.data_shape))
    words = f"{data.words}\n" if data.words else ""
    labels = (
        f", {int((data.train.y >= 0).sum()):,} labels"
        if prepared.config.data.labels and data.train.y is not None
        else ""
    )
    where = "" if isinstance(data.train.x, Tensor) else ", read a batch at a time"
    if not where and prepared.config.data.num_workers:
        where = ", held in memory, so that --num-workers has nothing to do"
    return f"{words}{Path(data.name).name}: {data.sizes} {data.noun} of {sizes}{labels}{where}"


def _stopped(prepared: Prepared) -> str:
    """Why a resumed run is not trained further although epochs are left; nothing where it is."""
    state = prepared.resume
    if state is None or state["stop_reason"] is None or len(state["rows"]) >= prepared.config.train.epochs:
        return ""
    return f"\nstopped by {state['stop_reason']} at epoch {len(state['rows'])}; pass another --patience to go on"
