"""Checks before a run: do model, data and options fit?"""

from __future__ import annotations

import dataclasses
from typing import Any

from pyro import poutine
from torch import Tensor

from pyro_vae.data import Data
from pyro_vae.data.labels import UNKNOWN
from pyro_vae.data.stored import rows_of
from pyro_vae.inference.kl.registry import CONTROLS
from pyro_vae.inference.program.sites import drawn_sites
from pyro_vae.models.checks import check_inputs, check_model
from pyro_vae.models.protocol import classifies, data_support, has_bound, takes
from pyro_vae.models.user_code import place_of_method, user_modules_of
from pyro_vae.runs.build import make_vae
from pyro_vae.runs.config import Config, ModelConfig, TrainConfig
from pyro_vae.runs.preflight.user_errors import failed_method
from pyro_vae.system.randomness import own_randomness


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
    check_inputs(vae, data)
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
    for name in ("encoder", "decoder") if user_modules_of(vae) else ("hidden", "activation", "encoder", "decoder"):
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
    support = data_support(vae)
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
        if isinstance(error, ValueError) and not place_of_method(
            vae, "center_output"
        ):  # a sentence of the package's own
            if config.model.decoder is None:
                raise
        elif (said := failed_method(config.model.model, vae, "center_output", error)) is None:
            raise
        else:
            raise ValueError(said) from error


def nothing_to_sum(vae: Any, batch: tuple[Tensor, ...]) -> str:
    """The sentence for `enum` on a model without an enumerated site."""
    trace = poutine.trace(vae.guide).get_trace(*batch)
    names = ", ".join(repr(name) for name, _ in drawn_sites(trace))
    return (
        f"elbo enum: expected a model with a discrete site to sum over, marked infer={{'enumerate': 'parallel'}}, got one that "
        f"draws {names}; use --elbo trace or mean-field."
    )
