"""The description of a run that is printed before the run begins."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pyro_vae.data.batches import Mixed
from pyro_vae.data.labels import are_vectors
from pyro_vae.inference.kl.registry import CONTROLS
from pyro_vae.inference.training.batching import epoch_order
from pyro_vae.models.registry import MODELS, PARTS, constructor_default, constructor_parameters, model_class
from pyro_vae.networks import MLP
from pyro_vae.networks.mlp import Joined
from pyro_vae.runs.build import Plan
from pyro_vae.runs.config import Config
from pyro_vae.system.version import package_version


def describe(plan: Plan, device_words: str) -> str:
    """Describe the machine, the data and the model, one line for each."""
    vae, config = plan.vae, plan.config
    count = sum(p.numel() for p in vae.parameters())
    order = epoch_order(vae, plan.data, plan.options)
    labelled = f", {order.per_batch} with a label in each" if isinstance(order, Mixed) else ""
    steps = math.ceil(order.total / config.train.batch_size)
    return (
        f"pyro_vae {package_version()}, torch {version('torch')}, Pyro {version('pyro-ppl')}, device {device_words}, "
        f"{torch.get_num_threads()} threads\n"
        f"{_data_line(plan)}, binarize {plan.data.binarize}\n"
        f"{_model_phrase(plan)}, {count:,} parameters; "
        f"objective {_objective_phrase(config)}, {steps} steps an epoch{labelled}; {plan.compiling}"
        + _stopped_line(plan)
    )


def _model_phrase(plan: Plan) -> str:
    """Name the model and the arguments that its constructor takes."""
    m, cls = plan.config.model, model_class(plan.config.model.model)
    taken, hidden, vectors = constructor_parameters(cls), _widths(plan), are_vectors(plan.data.train.y)
    parts = {kind: getattr(m, kind) for kind in PARTS}
    phrases = {
        "latent_dim": f"latent_dim {m.latent_dim}",
        "hidden": "" if hidden is None else f"hidden {'-'.join(map(str, hidden))}" if hidden else "no hidden layer",
        "likelihood": f"{m.likelihood} likelihood",
        **{kind: f"{name} {kind}" for kind, name in parts.items() if name not in ("", constructor_default(cls, kind))},
        "num_classes": f"vectors of {m.num_classes}" if vectors else f"{m.num_classes} classes",
        "encoder": f"encoder {m.encoder}" if m.encoder else "",
        "decoder": f"decoder {m.decoder}" if m.decoder else "",
    }
    arguments = [phrase for name, phrase in phrases.items() if name in taken and phrase]
    return f"{cls.__name__}: {', '.join([*arguments, *m.model_options])}"


def _widths(plan: Plan) -> tuple[int, ...] | None:
    """Return the widths of the encoder's hidden layers, if there are any.

    The widths may differ from ``--hidden``: the model m1m2 uses the encoder of another run, the one in its option ``below``.
    """
    m, vae = plan.config.model, plan.vae
    parts = getattr(vae, "encoder", vae).modules()
    encoder = next((part for part in parts if isinstance(part, MLP | Joined)), None)
    if encoder is None:
        has_layers = any(len(part.layers) for part in vae.modules() if isinstance(part, MLP))
        return m.hidden if has_layers or m.model not in MODELS else None
    layers = [*getattr(encoder, "first", ())[:1], *encoder.layers]
    return tuple(layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear))


def _objective_phrase(config: Config) -> str:
    """Name the objective, the KL weight and the KL controls."""
    t = config.train
    controls = [f"{name.replace('_', ' ')} {value}" for name in CONTROLS if (value := getattr(t, name)) is not None]
    weights = [*([] if t.beta == 1 else [f"beta {t.beta}"]), *controls]
    return " with ".join([t.elbo, *([" and ".join(weights)] if weights else [])])


def _data_line(plan: Plan) -> str:
    data, config = plan.data, plan.config.data
    sizes = " x ".join(map(str, data.data_shape))
    notes = f"{data.description}\n" if data.description else ""
    labels = f", {int((y >= 0).sum()):,} labels" if config.labels and (y := data.train.y) is not None else ""
    stored = "" if isinstance(data.train.x, Tensor) else ", read a batch at a time"
    if not stored and config.num_workers:
        stored = ", held in memory: --num-workers has no effect"
    return f"{notes}{Path(data.name).name}: {data.sizes} {data.noun} of {sizes}{labels}{stored}"


def _stopped_line(plan: Plan) -> str:
    """Say why a resumed run will not train for the remaining epochs."""
    state = plan.resume
    if state is None or state["stop_reason"] is None or len(state["rows"]) >= plan.config.train.epochs:
        return ""
    return f"\nstopped by {state['stop_reason']} at epoch {len(state['rows'])}; pass another --patience to go on"
