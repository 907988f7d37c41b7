"""What is seen of a model and its data before a run begins: each fault a sentence, with nothing written yet."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import schedules
from pyro_vae.config import Config, ModelConfig, TrainConfig
from pyro_vae.data import Data, Split, binarize
from pyro_vae.data.labels import UNKNOWN
from pyro_vae.data.stored import rows_of
from pyro_vae.failures import failed_method, program, where_of
from pyro_vae.inference.betas import Betas
from pyro_vae.inference.bounds import DRAWN_INSTEAD
from pyro_vae.inference.controls import CONTROLS
from pyro_vae.inference.layout import drawn_sites
from pyro_vae.inference.reached import check_reached
from pyro_vae.inference.validation import first_draw
from pyro_vae.models.protocol import (
    check_columns,
    check_model,
    classifies,
    has_bound,
    support_of,
    takes,
    told,
    unregistered,
    unsaved,
)
from pyro_vae.models.registry import modules_of
from pyro_vae.offered import try_methods
from pyro_vae.randomness import own_randomness
from pyro_vae.recipe import make_objective
from pyro_vae.runs import make_vae


def check_fit(config: Config, vae: Any, data: Data) -> None:
    """Refuse a model that lacks a part of the protocol, and data that it can make nothing of."""
    check_model(vae, f"model {config.model.model}")
    if config.data.labels is not None and "y" not in takes(vae):
        raise ValueError(
            f"labels: expected with a model that takes labels, got {config.data.labels:,} with --model {config.model.model}; "
            "drop it."
        )
    if config.data.labels is not None and not classifies(vae) and data.train.y is not None:
        if bool((data.train.y == UNKNOWN).any()):
            raise ValueError(
                f"labels: expected with a model that classifies, such as m2, got {config.data.labels:,} with --model "
                f"{config.model.model}, which needs the label of each datum; drop it."
            )
    if not has_bound(vae):
        _check_weights(config)
    check_columns(vae, data)
    check_support(vae, data)


def _check_weights(config: Config) -> None:
    """Refuse a weight of the KL where there is none."""
    t, usual = config.train, TrainConfig()
    for name in ("beta", "anneal", *CONTROLS):
        if getattr(t, name) != getattr(usual, name):
            raise ValueError(
                f"{name}: expected with a model that has a KL to weight, got {getattr(t, name)} with --model "
                f"{config.model.model}, which has none; drop it."
            )


def check_used(config: Config, vae: Any) -> None:
    """Refuse an option of the networks without which they would be the same, as the widths of a guide that has no layers.

    Whether a network of the user's reads what it is made with is not seen from its layers, and not asked.

    Args:
        config: What the run is.
        vae: The model that was made so.

    Raises:
        ValueError: If there is such an option.
    """
    m, usual = config.model, ModelConfig()
    for name in ("encoder", "decoder") if modules_of(vae) else ("hidden", "activation", "encoder", "decoder"):
        value = getattr(m, name)
        if value == getattr(usual, name):
            continue
        without = dataclasses.replace(m, **{name: getattr(usual, name)})
        with own_randomness(config.train.seed):
            other = make_vae(dataclasses.replace(config, model=without), vae.data_shape)
        if str(other) == str(vae):
            got = " ".join(map(str, value)) or "no layers" if isinstance(value, tuple) else value
            raise ValueError(
                f"{name}: expected with networks that it changes, got {got} with --model {m.model}, whose networks are the "
                "same without; drop it."
            )


def check_support(vae: Any, data: Data) -> None:
    """Refuse pixels that a model's likelihood gives no probability.

    Raises:
        ValueError: If they are grey under a Bernoulli, or outside [0, 1] under a continuous one.
    """
    support = support_of(vae)
    parts = data.train.x.split(rows_of(data.train.x.shape))
    if support == "binary" and not data.redraw and any(bool(((x != 0) & (x != 1)).any()) for x in parts):
        raise ValueError(
            "likelihood bernoulli: expected pixels of 0 and 1, got grey ones, of which it is no likelihood; binarize them "
            "(--binarize dynamic), or take --likelihood continuous-bernoulli."
        )
    if support == "unit":
        for x in parts:
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise ValueError(
                    f"likelihood continuous-bernoulli: expected pixels in [0, 1], got {float(x.min()):g} to "
                    f"{float(x.max()):g}; rescale them, or take --likelihood normal."
                )


def center(config: Config, vae: Any, data: Data) -> None:
    """Let p(x|z) start at the data's mean; a decoder of the user's may have nothing to set it by.

    Raises:
        ValueError: If a method of the user's fails.
    """
    if not hasattr(vae, "center_output"):
        return
    moments = data.moments()
    try:
        vae.center_output(*moments)
    except Exception as error:
        if isinstance(error, ValueError) and not where_of(vae, "center_output"):  # a sentence of the package's own
            if config.model.decoder is None:
                raise
        elif (said := failed_method(config.model.model, vae, "center_output", error)) is None:
            raise
        else:
            raise ValueError(said) from error


@torch.no_grad()
def try_out(config: Config, vae: Any, data: Data) -> None:
    """Run on two data what a run will run, so that what fails or is refused is said before anything is written.

    Raises:
        ValueError: If the objective refuses the model, the program fails, or a method gives another shape than it should.
    """
    t = config.train
    x, *others = told(vae, data.train)[_two(data.train)]
    batch = (binarize(x, "threshold") if data.redraw else x, *others)
    pair = Betas(schedules.parse_all(t.anneal, t.beta)).apply(vae.model, vae.guide)
    was_training, name = vae.training, config.model.model
    with own_randomness(t.seed), pyro.get_param_store().scope(), warnings.catch_warnings(), program(name, vae):
        warnings.filterwarnings("ignore", message=DRAWN_INSTEAD)
        warnings.filterwarnings("error", message="TraceEnum_ELBO found no sample sites")
        warnings.filterwarnings(
            "ignore", message="Found (vars in model|non-auxiliary vars|plate statements)"
        )  # errors, below
        _check_registered(name, vae, batch)
        try:
            make_objective(config).terms(*pair, *batch)
        except UserWarning as warning:
            if "found no sample sites" not in str(warning):
                raise
            raise ValueError(_nothing_to_sum(vae, batch)) from None
        vae.eval()
        try:
            first_draw(vae.model, vae.guide, batch)
            _check_registered(name, vae, batch)
            try_methods(name, vae, batch)
        finally:
            vae.train(was_training)
        check_reached(name, vae, make_objective(config), pair, batch)


def _check_registered(name: str, vae: Any, batch: tuple[Tensor, ...]) -> None:
    """Refuse a model whose parameters never come to Pyro's notice, and one with parameters that no module holds."""
    met = (poutine.trace(part, param_only=True).get_trace(*batch).nodes for part in (vae.guide, vae.model))
    if any(p.requires_grad for p in vae.parameters()) and not any(met):
        raise ValueError(unregistered(name))
    own = {id(p) for p in vae.parameters()}
    for parameter, value in pyro.get_param_store().named_parameters():
        if id(value) not in own:
            raise ValueError(f"model {name}, {unsaved(parameter)}")


def _two(split: Split) -> Tensor:
    """Two data, one with a label and one without where there are both."""
    if split.y is None or split.y.dim() > 1:
        return torch.arange(min(2, len(split.x)))
    return torch.stack([split.y.argmin(), split.y.argmax()]).cpu()


def _nothing_to_sum(vae: Any, batch: tuple[Tensor, ...]) -> str:
    trace = poutine.trace(vae.guide).get_trace(*batch)
    names = ", ".join(repr(name) for name, _ in drawn_sites(trace))
    return (
        f"elbo enum: expected a model with a discrete site to sum over, marked infer={{'enumerate': 'parallel'}}, got one that "
        f"draws {names}; use --elbo trace or mean-field."
    )
