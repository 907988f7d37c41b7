"""Classes that a user wrote: imported by name, and located in error messages."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from torch import nn

from pyro_vae.errors import error_summary
from pyro_vae.models.protocol import PyroModel


def import_class(kind: str, path: str) -> type[nn.Module]:
    """The class at ``MODULE:CLASS``.

    Raises:
        ValueError: If it cannot be imported, or is no ``nn.Module``.
    """
    module, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"{kind}: expected MODULE:CLASS such as mypackage.nets:MyEncoder, got {path!r}.")
    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind} {path}: expected a module that Python finds, got none called {error.name}; start from the folder that "
            "holds it, or set PYTHONPATH."
        ) from None
    except SystemExit as leave:
        raise ValueError(
            f"{kind} {path}: expected a module that can be imported, got one that leaves Python (sys.exit) when it is; put "
            'what is its program under `if __name__ == "__main__":`.'
        ) from leave
    except Exception as error:
        raise ValueError(f"{kind} {path}: importing {module} failed ({error_summary(error)}); mend it.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        got = "none" if found is None else f"{type(found).__name__} {name}"
        raise ValueError(f"{kind} {path}: expected a class that is a torch.nn.Module in {module}, got {got}.")
    return found


def user_modules(modules: Iterable[str]) -> set[str]:
    """Those that are a user's."""
    return {name for name in modules if name.partition(".")[0] not in ("pyro_vae", "torch", "pyro")}


def user_modules_of(vae: PyroModel) -> set[str]:
    """The Python modules that hold the classes of a model's parts, as far as they are a user's."""
    return user_modules(type(part).__module__ for part in vae.modules())


def place_of_error(error: Exception, modules: Iterable[str]) -> str | None:
    """File and line where an error arose in a user's modules; None where it did in none of them."""
    foreign = user_modules(modules)
    files = {getattr(sys.modules.get(name), "__file__", None) for name in foreign}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


def place_of_method(vae: Any, method: str) -> str:
    """File and line of a method that a user wrote."""
    function = inspect.unwrap(getattr(type(vae), method, None) or getattr(vae, method))
    code, module = getattr(function, "__code__", None), str(getattr(function, "__module__", ""))
    return (
        ""
        if code is None or module.partition(".")[0] == "pyro_vae"
        else f"{code.co_filename}, line {code.co_firstlineno}"
    )
