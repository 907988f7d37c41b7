"""Errors in a user's classes, each reported in a single sentence."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pyro.poutine.messenger import Messenger

from pyro_vae.errors import error_summary, first_line
from pyro_vae.inference.program.sites import Site
from pyro_vae.models.protocol import PyroModel
from pyro_vae.models.registry import model_class, model_settings
from pyro_vae.models.user_code import place_of_error, place_of_method, user_modules_of
from pyro_vae.runs.config import Config
from pyro_vae.system.devices import explain_device_error

PREFLIGHT = Path(__file__).parent


@contextlib.contextmanager
def program_errors(name: str, vae: PyroModel) -> Iterator[None]:
    """Turn an error in a user's program into one sentence.

    Args:
        name: The model's name in the sentence.
        vae: The model.

    Raises:
        ValueError: Raised in place of an error in the user's program; its message is the sentence.
    """
    modules = user_modules_of(vae)
    with SiteLines(modules) as lines:
        try:
            yield
        except Exception as error:
            where = place_of_error(error, modules)
            if isinstance(error, ValueError):
                sentence = sentence_for(str(error), name, lines, where)
                if sentence is not None:
                    raise ValueError(sentence) from None
                if where is None or _raised_here(error):
                    raise ValueError(first_line(error)) from None
            if where is None or explain_device_error(error) is not None:
                raise
            raise ValueError(
                f"model {name}: expected a program that runs on these data, got {error_summary(error)} ({where}); correct "
                "the program, or choose other data."
            ) from error


def _raised_here(error: Exception) -> bool:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PREFLIGHT)


@contextlib.contextmanager
def class_settings_errors(config: Config) -> Iterator[None]:
    """Name the user's class in errors about its ``objective`` and ``defaults``.

    Raises:
        ValueError: The original error, with the class and the attribute named at the start of the message.
    """
    try:
        yield
    except ValueError as error:
        name, text = config.model.model, str(error)
        if ":" not in name:
            raise
        objective = getattr(model_class(name), "objective", None)
        if text.startswith(f"unknown objective {objective!r}:") and config.train.elbo in ("", objective):
            raise ValueError(f"model {name}.objective: {text}") from None
        values = vars(config.data) | vars(config.train)
        for key, default in model_settings(name).items():
            unknown = text.startswith("unknown ") and f" {default!r}:" in text
            if (text.startswith(f"{key}:") or unknown) and values.get(key) == default:
                raise ValueError(f"model {name}.defaults: {text}") from None
        raise


def method_error(name: str, vae: PyroModel, method: str, error: Exception) -> str | None:
    """Return the sentence that reports a failing method of a user's class.

    Args:
        name: The model's name in the sentence.
        vae: The model.
        method: The method's name.
        error: The error that the method raised.

    Returns:
        The sentence; None if the class is not a user's, or if the device caused the error.
    """
    modules = user_modules_of(vae)
    if not modules or explain_device_error(error) is not None:
        return None
    where = place_of_error(error, modules) or place_of_method(vae, method)
    return (
        f"model {name}.{method}: expected a method that runs on these data, got {error_summary(error)}{in_brackets(where)}; "
        "correct or remove the method."
    )


def in_brackets(where: str | None) -> str:
    """Return a place in brackets; an empty string if it is unknown."""
    return f" ({where})" if where else ""


class SiteLines(Messenger):
    """A Pyro messenger that records where a user's sites are defined.

    The dict ``lines`` holds the file and line of each site, by the site's name and batch shape.

    Args:
        modules: Names of the user's modules.
    """

    def __init__(self, modules: set[str]) -> None:
        super().__init__()
        self.files = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
        self.lines: dict[tuple[str, tuple[int, ...]], str] = {}

    def _pyro_sample(self, msg: Site) -> None:
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename not in self.files:
            frame = frame.f_back
        if frame is not None:
            key = msg["name"], tuple(getattr(msg["fn"], "batch_shape", ()))
            self.lines[key] = f"{frame.f_code.co_filename}, line {frame.f_lineno}"


class PyroError(NamedTuple):
    """An error of Pyro about a user's program.

    Attributes:
        model: The model's name in the sentence.
        match: Regular-expression match of the error's first line.
        below: The lines of the error below the first line, such as a table of shapes.
        sites: The record of each site's file and line.
        where: File and line of the error; None if the error is outside the user's modules.
    """

    model: str
    match: re.Match[str]
    below: list[str]
    sites: SiteLines
    where: str | None


def _parameter_out_of_range(error: PyroError) -> str:
    parameter, distribution = error.match.groups()
    value = re.search(r"nan|inf", " ".join(error.below))
    return (
        f"model {error.model}: expected distributions whose parameters are in their range, got {distribution} with "
        f"{parameter} {value[0] if value else 'outside it'}; check how model and guide compute {parameter}."
    )


def _shapes_disagree(error: PyroError) -> str:
    site, *shapes = error.match.groups()
    sizes = " in the model and ".join(re.sub(r"torch.Size\(\[(.*)\]\)", r"(\1)", shape) for shape in shapes)
    return (
        f"model {error.model}: expected the same shape of site {site!r} in both programs, got {sizes} in the guide; draw "
        'the site within pyro.plate("data", len(x), dim=-1) in both.'
    )


def _event_dims_disagree(error: PyroError) -> str:
    site, in_model, in_guide = error.match.groups()
    # The side with the deeper batch shape is the one without to_event.
    depths = [(len(shape), line) for (name, shape), line in error.sites.lines.items() if name == site]
    where = max(depths, default=(0, None))[1]
    return (
        f"model {error.model}: expected equally many event dimensions of site {site!r}, got {in_model} in the model and "
        f"{in_guide} in the guide; add .to_event({max(in_model, in_guide)}) in the program that has fewer"
        f"{in_brackets(where)}."
    )


def _plate_size_differs(error: PyroError) -> str:
    plate, site, dim, size, got = error.match.groups()
    return (
        f"model {error.model}: expected log p of size {size} in dimension {dim} at site {site!r} within plate {plate!r}, got "
        f"{got}; add .to_event(1) to the site's distribution{in_brackets(error.where)}."
    )


def _log_prob_shape(error: PyroError) -> str:
    site = error.match[1]
    expected, actual = (tuple(map(int, re.findall(r"\d+", part))) for part in error.below[0].split(", actual"))
    where = error.sites.lines.get((site, actual))
    return (
        f"model {error.model}: site {site!r} needs log p of shape {expected} to fit its plates, got {actual}; put the site "
        f'in pyro.plate("data", len(x), dim=-1), or add .to_event(1) to its distribution{in_brackets(where)}.'
    )


def _value_outside_support(error: PyroError) -> str:
    site, reason = error.match[1], " ".join(error.below[:1])
    if "support (Boolean" in reason:
        return (
            f"model {error.model}: expected pixels that are 0 or 1 at site {site!r}, got other values; pass "
            "--binarize dynamic, or give the site another distribution."
        )
    return (
        f"model {error.model}: expected data in the support of site {site!r}, got values outside ({reason}); change the data "
        "or the site's distribution."
    )


#: Patterns of the first lines of Pyro's errors, each with the function that makes our sentence.
PYRO_ERRORS: tuple[tuple[str, Callable[[PyroError], str]], ...] = (
    (r"Expected parameter (\w+) .* of distribution (\w+)\(", _parameter_out_of_range),
    (r"Model and guide shapes disagree at site '(.+)': (.+) vs (.+)", _shapes_disagree),
    (r"Model and guide event_dims disagree at site '(.+)': (\d+) vs (\d+)", _event_dims_disagree),
    (r"Shape mismatch inside plate\('(.+)'\) at site (\S+) dim (\S+), (\d+) vs (\d+)", _plate_size_differs),
    (r'at site "(.+)", invalid log_prob shape', _log_prob_shape),
    (r"Error while computing log_prob at site '(.+)':", _value_outside_support),
)


def sentence_for(text: str, name: str, sites: SiteLines, where: str | None) -> str | None:
    """Return the sentence that reports a known Pyro error; otherwise None."""
    first, *below = text.strip().splitlines() or [""]
    for pattern, sentence in PYRO_ERRORS:
        if match := re.match(pattern, first):
            return sentence(PyroError(name, match, below, sites, where))
    return None
