"""Checks that a run's model, data and options fit together."""

from __future__ import annotations

import dataclasses

from pyro_vae.data import Data
from pyro_vae.data.labels import UNKNOWN
from pyro_vae.data.stored import rows_of
from pyro_vae.inference.kl.registry import CONTROLS
from pyro_vae.models.checks import check_inputs, check_model
from pyro_vae.models.protocol import PyroModel, classifies, data_support, has_bound, takes
from pyro_vae.models.registry import constructor_default, model_class
from pyro_vae.models.user_code import user_modules_of
from pyro_vae.runs.build import Plan, make_vae
from pyro_vae.runs.config import Config, ModelConfig, TrainConfig
from pyro_vae.system.randomness import own_randomness


def check_compatibility(plan: Plan) -> None:
    """Refuse a model, data and options that do not fit together.

    Raises:
        ValueError: If the model lacks a part of the protocol, or cannot be trained on the data or with an option.
    """
    config, vae, data = plan.config, plan.vae, plan.data
    check_model(vae, f"model {config.model.model}")
    if config.data.labels is not None:
        _check_labels_flag(config, vae, data)
    if not has_bound(vae):
        _check_no_kl_weight(config)
    check_inputs(vae, data)
    check_support(vae, data)


def _check_labels_flag(config: Config, vae: PyroModel, data: Data) -> None:
    """Refuse ``--labels`` for a model without labels, or that needs every label."""
    labels, name = config.data.labels, config.model.model
    if "y" not in takes(vae):
        raise ValueError(f"labels: --model {name} takes no labels, got {labels:,}; remove --labels.")
    if not classifies(vae) and data.train.y is not None and bool((data.train.y == UNKNOWN).any()):
        raise ValueError(
            f"labels: --model {name} needs the label of each datum, got {labels:,}; remove --labels, or choose a model that "
            "classifies, such as m2."
        )


def _check_no_kl_weight(config: Config) -> None:
    """Refuse KL weights and controls for a model without a KL."""
    t, defaults = config.train, TrainConfig()
    for name in ("beta", "anneal", *CONTROLS):
        if getattr(t, name) != getattr(defaults, name):
            raise ValueError(
                f"{name}: --model {config.model.model} has no KL to weight, got {getattr(t, name)}; "
                f"remove --{name.replace('_', '-')}."
            )


def check_network_options(plan: Plan) -> None:
    """Refuse an option of the networks that changes nothing.

    For example, widths change nothing in a guide without layers. For each option that is set, a second model is made with the
    option at its default, and the networks of both models are compared. A user's network is not checked, because its layers
    may not show which arguments the network reads.

    Raises:
        ValueError: If an option changes nothing.
    """
    config, vae = plan.config, plan.vae
    m, defaults = config.model, ModelConfig()
    names = (
        ("encoder", "decoder") if user_modules_of(vae) else ("network", "hidden", "activation", "encoder", "decoder")
    )
    for name in names:
        value = getattr(m, name)
        if value == (getattr(defaults, name) or constructor_default(model_class(m.model), name)):
            continue
        without = dataclasses.replace(m, **{name: getattr(defaults, name)})
        with own_randomness(config.train.seed):
            other = make_vae(dataclasses.replace(config, model=without), plan.data.data_shape)
        if str(other) == str(vae):
            got = " ".join(map(str, value)) or "no layers" if isinstance(value, tuple) else value
            raise ValueError(f"{name}: {got} changes nothing in the networks of --model {m.model}; remove --{name}.")


def check_support(vae: PyroModel, data: Data) -> None:
    """Refuse pixels outside the support of a model's likelihood.

    Raises:
        ValueError: If the likelihood is for binary pixels and pixels are grey, or if the likelihood is for pixels in [0, 1] and
            pixels are outside.
    """
    support = data_support(vae)
    parts = data.train.x.split(rows_of(data.train.x.shape))
    if support == "binary" and not data.redraw and any(bool(((x != 0) & (x != 1)).any()) for x in parts):
        raise ValueError(
            "likelihood: expected pixels that are 0 or 1, got grey values; pass --binarize dynamic or --likelihood "
            "continuous-bernoulli."
        )
    if support == "unit":
        for x in parts:
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise ValueError(
                    f"likelihood: expected pixels in [0, 1], got {float(x.min()):g} to "
                    f"{float(x.max()):g}; rescale them, or pass --likelihood normal."
                )
