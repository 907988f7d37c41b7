"""Errors in a user's classes, told in one sentence with file and line."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_vae.errors import error_summary, first_line
from pyro_vae.models.registry import model_class, model_settings
from pyro_vae.models.user_code import place_of_error, place_of_method, user_modules_of
from pyro_vae.runs.config import Config
from pyro_vae.system.devices import explain

PACKAGE = Path(__file__).parent


@contextlib.contextmanager
def program(name: str, vae: Any) -> Iterator[None]:
    """Inside, what fails in a user's classes, or is refused by Pyro, is one sentence.

    Args:
        name: What the sentence calls the model.
        vae: The model.

    Raises:
        ValueError: If something does.
    """
    modules = user_modules_of(vae)
    with _Sites(modules) as sites:
        try:
            yield
        except Exception as error:
            refused = isinstance(error, ValueError)
            if refused and (said := _of_pyro(name, str(error), sites, place_of_error(error, modules))) is not None:
                raise ValueError(said) from None
            where = place_of_error(error, modules)
            ours = Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)
            if refused and (where is None or ours):
                raise ValueError(first_line(error)) from None
            if where is None or explain(error) is not None:
                raise
            raise ValueError(
                f"model {name}: expected a program that runs on these data, got {error_summary(error)} ({where}); mend it, or "
                "take other data."
            ) from error


@contextlib.contextmanager
def model_defaults(config: Config) -> Iterator[None]:
    """Inside, what is refused of a user's class's own ``objective`` and ``defaults`` says that they are from there."""
    try:
        yield
    except ValueError as error:
        name, text = config.model.model, str(error)
        if ":" not in name:
            raise
        wanted = {"objective": getattr(model_class(name), "objective", None)}
        if text.startswith(f"unknown objective {wanted['objective']!r}:") and config.train.elbo in (
            "",
            *wanted.values(),
        ):
            raise ValueError(f"model {name}.objective: {text}") from None
        now = vars(config.data) | vars(config.train)
        for key, value in model_settings(name).items():
            unknown = text.startswith("unknown ") and f" {value!r}:" in text
            if (text.startswith(f"{key}:") or unknown) and now.get(key) == value:
                raise ValueError(f"model {name}.defaults: {text}") from None
        raise


def failed_method(name: str, vae: Any, method: str, error: Exception) -> str | None:
    """That a method of a user's fails, and where; None where the error is another's.

    Args:
        name: What the sentence calls the model.
        vae: The model.
        method: The method's name.
        error: What it raised.
    """
    modules = user_modules_of(vae)
    if not modules or explain(error) is not None:
        return None
    where = place_of_error(error, modules) or place_of_method(vae, method)
    return (
        f"model {name}.{method}: expected a method that runs on these data, got {error_summary(error)}{at(where)}; mend it, or "
        "leave it out."
    )


def at(where: str | None) -> str:
    """A place in brackets, to end a sentence's part with; nothing where it is not known."""
    return f" ({where})" if where else ""


class _Sites(Messenger):
    """Where a user's modules have their sites: for each site's name and batch shape, file and line."""

    def __init__(self, modules: set[str]) -> None:
        super().__init__()
        self.files = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
        self.found: dict[tuple[str, tuple[int, ...]], str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename not in self.files:
            frame = frame.f_back
        if frame is not None:
            key = msg["name"], tuple(getattr(msg["fn"], "batch_shape", ()))
            self.found[key] = f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def _of_pyro(name: str, text: str, sites: _Sites, where: str | None) -> str | None:
    """A message of Pyro's without the table of shapes below, in our words; None of another."""
    first, *others = text.strip().splitlines()
    if parameter := re.match(r"Expected parameter (\w+) .* of distribution (\w+)\(", first):
        values = re.search(r"nan|inf", " ".join(others))
        return (
            f"model {name}: expected distributions whose parameters are in their range, got {parameter[2]} with {parameter[1]} "
            f"{values[0] if values else 'outside it'}; look at what model and guide compute for it."
        )
    if shapes := re.match(r"Model and guide shapes disagree at site '(.+)': (.+) vs (.+)", first):
        sizes = " in the model and ".join(
            re.sub(r"torch.Size\(\[(.*)\]\)", r"(\1)", size) for size in shapes.groups()[1:]
        )
        return (
            f"model {name}: expected one shape of site {shapes[1]!r}, got {sizes} in the guide; draw it in both within "
            'the plate of the batch, pyro.plate("data", len(x), dim=-1).'
        )
    if dims := re.match(r"Model and guide event_dims disagree at site '(.+)': (\d+) vs (\d+)", first):
        written = [(len(shape), line) for (site, shape), line in sites.found.items() if site == dims[1]]
        where = max(written, default=(0, None))[1]
        return (
            f"model {name}: expected as many event dimensions of site {dims[1]!r} in model and guide, got {dims[2]} in the "
            f"model and {dims[3]} in the guide; add .to_event({max(dims[2], dims[3])}) where there are fewer{at(where)}."
        )
    if shapes := re.match(r"Shape mismatch inside plate\('(.+)'\) at site (\S+) dim (\S+), (\d+) vs (\d+)", first):
        plate, site_name, dim, size, got = shapes.groups()
        return (
            f"model {name}: expected log p of size {size} in dimension {dim} at site {site_name!r} within plate {plate!r}, got "
            f"{got}; add .to_event(1) to its distribution{at(where)}."
        )
    if outside := re.match(r'at site "(.+)", invalid log_prob shape', first):
        wanted, actual = (tuple(map(int, re.findall(r"\d+", part))) for part in others[0].split(", actual"))
        where = sites.found.get((outside[1], actual))
        return (
            f"model {name}: expected log p of shape {wanted} at site {outside[1]!r}, as its plates say, got {actual}; "
            'put it in the plate of the batch, pyro.plate("data", len(x), dim=-1), or add .to_event(1) to its '
            f"distribution{at(where)}."
        )
    site = re.match(r"Error while computing log_prob at site '(.+)':", first)
    if site is None:
        return None
    if "support (Boolean" in " ".join(others[:1]):
        return (
            f"model {name}: expected pixels of 0 and 1 for its site {site[1]!r}, got others; binarize them (--binarize "
            "dynamic), or give the site another distribution."
        )
    return f"model {name}: expected data that its site {site[1]!r} takes, got others ({' '.join(others[:1])}); mend either."
