"""Models by name, and their construction from flags and options."""

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


#: The parts of a model that have a name, with the table of their names.
PARTS: dict[str, Mapping[str, type[nn.Module]]] = {
    "likelihood": LIKELIHOODS,
    "prior": PRIORS,
    "posterior": POSTERIORS,
    "network": NETWORKS,
}

#: The parameters of a constructor that have a flag; all others are options of the model.
ARGUMENTS = ("data_shape", "latent_dim", "hidden", "activation", *PARTS, "num_classes", "encoder", "decoder")

#: Parameters that are options of the model too: they had no flag at first.
FLAGS_AND_OPTIONS = ("prior", "posterior", "network")


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def model_class(name: str) -> type[nn.Module]:
    """Return the class of a model.

    Args:
        name: A name from ``MODELS``; or ``MODULE:CLASS``, a class to import.

    Raises:
        ValueError: If there is no such class, or it is not an ``nn.Module`` with ``model``, ``guide`` and a constructor that
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
                f"model {name}: expected a class with Pyro functions model and guide, got one without {part}; write it."
            )
    if "data_shape" not in (taken := constructor_parameters(cls)):
        raise ValueError(
            f"model {name}: expected a constructor that takes data_shape, got {cls.__name__}({', '.join(taken)}); give it "
            "this parameter."
        )
    return cls


def constructor_parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor by name.

    If it hands ``**options`` on, they include those of its base class.
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
    """Return the parameters of a constructor that ``--model-options`` may set."""
    return [name for name in constructor_parameters(cls) if name not in ARGUMENTS or name in FLAGS_AND_OPTIONS]


def constructor_default(cls: type[nn.Module], name: str) -> object:
    """Return the default of a constructor's parameter; None without one."""
    parameter = constructor_parameters(cls).get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def model_settings(name: str) -> dict[str, Any]:
    """Return a model's own defaults for flags of data and training.

    Raises:
        ValueError: See :func:`model_class`; or if the class's ``defaults`` are not a dict.
    """
    defaults = getattr(model_class(name), "defaults", {})
    if not isinstance(defaults, Mapping):
        raise ValueError(
            f"model {name}: expected `defaults` as a dict of flags with their values, got {defaults!r}; correct the class."
        )
    return dict(defaults)


def check_parts(name: str, given: Mapping[str, object]) -> None:
    """Refuse unknown names of a model's parts.

    Args:
        name: See :func:`model_class`.
        given: Names of parts by kind, such as ``{"prior": "normal"}``. Kinds that the constructor does not take are ignored,
            and its own default is always right.

    Raises:
        ValueError: If a name is unknown, or its arguments are wrong.
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
    """Make a model.

    Args:
        name: See :func:`model_class`.
        arguments: Values of ``ARGUMENTS``; those that the constructor does not take are ignored. ``encoder`` and ``decoder``
            are ``MODULE:CLASS``, classes that are made as ``networks.MLP`` is.
        options: ``NAME=VALUE`` for other parameters of the constructor; a value is a Python literal, or else text.
        load_run: Loads the model of a run, for the options in the class's ``from_runs``.

    Raises:
        ValueError: If a class cannot be imported, an option is unknown or malformed, or the constructor refuses a value.
    """
    cls = model_class(name)
    taken = constructor_parameters(cls)
    # Defaults are not passed: a class that hands options on may set some of them itself.
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
            f"model {name}: expected a value for {missing[0]}, which its constructor needs, got none; pass --model-options "
            f"{missing[0]}=VALUE, or give it a default."
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
                f"model {name}: expected constructors that run, got {got} ({where}); correct it."
            ) from error
        if not isinstance(error, TypeError):
            raise
        got = " ".join(options) or "others"
        raise ValueError(
            f"model {name}: expected arguments of the right types, got {got} ({error}); correct it."
        ) from error


def read_options(name: str, cls: type[nn.Module], words: Sequence[str]) -> dict[str, object]:
    """Read ``NAME=VALUE`` options as keyword arguments of a constructor.

    Raises:
        ValueError: If one has another form, comes twice, or is not an option of the class.
    """
    known = constructor_options(cls)
    values: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"model_options: expected NAME=VALUE, got {word!r}; separate options by spaces.")
        if key not in known:
            if not known:
                raise ValueError(
                    f"model_options: expected none with --model {name}, which takes none, got {word!r}; drop it."
                )
            raise unknown(f"option of --model {name}", key, known)
        if key in values:
            raise ValueError(f"model_options: expected {key} once, got it twice; drop one.")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    return values
