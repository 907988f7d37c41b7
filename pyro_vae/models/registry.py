"""Models by name; functions that make a model from flags and options."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from pyro_vae.distributions import LIKELIHOODS, POSTERIORS, PRIORS
from pyro_vae.lookup import parse_part, unknown
from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.denoising import DenoisingVAE
from pyro_vae.models.inpainting import InpaintingVAE
from pyro_vae.models.linear import LinearVAE
from pyro_vae.models.presets import TCVAE, BetaVAE
from pyro_vae.models.semi_supervised import ADGM, M1, M1M2, M2, SDGM
from pyro_vae.models.user_code import import_class, place_of_error
from pyro_vae.models.vae import VAE
from pyro_vae.networks import NETWORKS
from pyro_vae.networks.build import check_maker

#: The models of the command line, ``--model NAME``.
MODELS: dict[str, type[nn.Module]] = {
    "vae": VAE,
    "linear": LinearVAE,
    "autoencoder": Autoencoder,
    "denoising": DenoisingVAE,
    "inpainting": InpaintingVAE,
    "conditional": Conditional,
    "m1": M1,
    "m2": M2,
    "m1m2": M1M2,
    "auxiliary": ADGM,
    "sdgm": SDGM,
    "beta": BetaVAE,
    "tcvae": TCVAE,
}


#: The kinds of parts that a name selects, each with its table of classes.
PARTS: dict[str, Mapping[str, type[nn.Module]]] = {
    "likelihood": LIKELIHOODS,
    "prior": PRIORS,
    "posterior": POSTERIORS,
    "network": NETWORKS,
}

#: The constructor parameters with a flag of their own; ``--model-options`` sets all others.
ARGUMENTS = ("data_shape", "latent_dim", "hidden", "activation", *PARTS, "num_classes", "encoder", "decoder")

#: The parameters with a flag that ``--model-options`` sets too: early versions had no flags for these parameters.
FLAGS_AND_OPTIONS = ("prior", "posterior", "network")


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def model_class(name: str) -> type[nn.Module]:
    """Return the model class with a given name.

    Args:
        name: A name from ``MODELS``; or ``MODULE:CLASS`` to import a class.

    Raises:
        ValueError: If the class does not exist, or is not an ``nn.Module`` with ``model``, ``guide`` and a constructor that
            takes ``data_shape``.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ValueError(
            f"{unknown('model', name, MODELS)} Or name a class of your own, such as mypackage.mymodule:MyVAE."
        )
    cls = import_class("model", name)
    for part in ("model", "guide"):
        if not callable(getattr(cls, part, None)):
            raise ValueError(
                f"model {name}: the class needs the Pyro functions model and guide, but has no {part}; write {part}."
            )
    if "data_shape" not in (taken := constructor_parameters(cls)):
        raise ValueError(
            f"model {name}: expected a constructor that takes data_shape, got {cls.__name__}({', '.join(taken)}); add "
            "the parameter data_shape."
        )
    return cls


def constructor_parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a model's constructor by name.

    If the constructor takes ``**options``, the parameters of its base class are included.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        found |= {p.name: p for p in own if p.kind not in _OPEN and p.name not in found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own):
            break
    return found


def constructor_options(cls: type[nn.Module]) -> list[str]:
    """Return the names of the constructor parameters for ``--model-options``."""
    return [name for name in constructor_parameters(cls) if name not in ARGUMENTS or name in FLAGS_AND_OPTIONS]


def constructor_default(cls: type[nn.Module], name: str) -> object:
    """Return the default of one constructor parameter; None if required."""
    parameter = constructor_parameters(cls).get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def model_settings(name: str) -> dict[str, Any]:
    """Return the model's own defaults for the data and training flags.

    Raises:
        ValueError: If the attribute ``defaults`` of the class is not a dict, or :func:`model_class` refuses the name.
    """
    defaults = getattr(model_class(name), "defaults", {})
    if not isinstance(defaults, Mapping):
        raise ValueError(
            f"model {name}: expected `defaults` as a dict from flags to values, got {defaults!r}; correct the class."
        )
    return dict(defaults)


def check_parts(name: str, given: Mapping[str, object]) -> None:
    """Check that a model accepts the named prior, likelihood and other parts.

    Args:
        name: See :func:`model_class`.
        given: Name of each part, by kind, such as ``{"prior": "normal"}``. A kind that the constructor does not take is
            ignored. The constructor's default is always accepted.

    Raises:
        ValueError: If a name is unknown, or the arguments that follow a name (``NAME:ARG``) are wrong.
    """
    taken = constructor_parameters(model_class(name))
    for kind, table in PARTS.items():
        value = given.get(kind)
        if kind in taken and isinstance(value, str) and value and value != taken[kind].default:
            parse_part(kind, value, table)


def make(
    name: str,
    arguments: Mapping[str, object],
    options: Sequence[str] = (),
    load_run: Callable[[str], object] | None = None,
) -> nn.Module:
    """Make a model from its name and the values of flags.

    Args:
        name: See :func:`model_class`.
        arguments: Values of the constructor parameters that are listed in ``ARGUMENTS``. A parameter that the constructor does
            not take is ignored. ``encoder`` and ``decoder`` are texts ``MODULE:CLASS``; the class has the constructor
            arguments of ``networks.MLP``.
        options: Texts ``NAME=VALUE`` for the other constructor parameters. A value that is no Python literal is kept as text.
        load_run: Function that loads a trained model from the path of a run. The class lists in ``from_runs`` the options that
            need it.

    Raises:
        ValueError: If a class cannot be imported, an option is unknown or malformed, or the constructor refuses a value.
    """
    cls = model_class(name)
    taken = constructor_parameters(cls)
    # Defaults are not passed: a class with **options may set some options itself.
    given = {key: value for key, value in arguments.items() if key in taken and value != taken[key].default}
    given = {key: value for key, value in given.items() if not (key in PARTS and value == "")}
    for part in ("encoder", "decoder"):
        if isinstance(path := given.get(part), str):
            network = import_class(part, path)
            check_maker(network)
            given[part] = network
    given |= read_options(name, cls, options)
    for key in getattr(cls, "from_runs", ()):
        if load_run is not None and isinstance(path := given.get(key), str):
            given[key] = load_run(path)
    if missing := [k for k, p in taken.items() if p.default is inspect.Parameter.empty and k not in given]:
        raise ValueError(
            f"model {name}: the constructor needs a value for {missing[0]}; pass --model-options {missing[0]}=VALUE, or give "
            f"{missing[0]} a default."
        )
    try:
        return cls(**given)
    except ValueError:
        raise
    except Exception as error:
        classes = [cls, *(value for value in given.values() if isinstance(value, type))]
        if (where := place_of_error(error, [c.__module__ for c in classes])) is not None:
            got = f"{type(error).__name__}: {str(error).rstrip('.')}"
            raise ValueError(
                f"model {name}: a constructor failed with {got} ({where}); correct the code there."
            ) from error
        if not isinstance(error, TypeError):
            raise
        got = " ".join(options) or "its arguments"
        raise ValueError(f"model {name}: a constructor refused {got} ({error}); correct these arguments.") from error


def read_options(name: str, cls: type[nn.Module], words: Sequence[str]) -> dict[str, object]:
    """Convert options ``NAME=VALUE`` to keyword arguments of a constructor.

    Raises:
        ValueError: If an option has another form or is given twice, or the class does not know it.
    """
    known = constructor_options(cls)
    values: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"model_options: expected NAME=VALUE, got {word!r}; separate options by spaces.")
        if key not in known:
            if not known:
                raise ValueError(f"model_options: --model {name} takes no options, got {word!r}; remove the option.")
            raise unknown(f"option of --model {name}", key, known)
        if key in values:
            raise ValueError(f"model_options: expected {key} once, got two values; remove one value.")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    return values
