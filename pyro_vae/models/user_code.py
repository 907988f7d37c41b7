"""Import the user's own classes and locate errors in the user's code."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable

from torch import nn

from pyro_vae.errors import error_summary
from pyro_vae.models.protocol import PyroModel


def import_class(kind: str, path: str) -> type[nn.Module]:
    """Import the class ``MODULE:CLASS``.

    Args:
        kind: The kind of class, such as ``"model"``, for the error message.
        path: Module and name of the class, ``MODULE:CLASS``.

    Raises:
        ValueError: If the class cannot be imported, or is not an ``nn.Module``.
    """
    module, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"{kind}: expected MODULE:CLASS such as mypackage.nets:MyEncoder, got {path!r}.")
    try:
        found: object = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind} {path}: Python finds no module called {error.name}; start from the folder that contains it, or set "
            "PYTHONPATH."
        ) from None
    except SystemExit as leave:
        raise ValueError(
            f"{kind} {path}: importing {module} ends Python (sys.exit); put the module's program under "
            '`if __name__ == "__main__":`.'
        ) from leave
    except Exception as error:
        raise ValueError(
            f"{kind} {path}: importing {module} failed ({error_summary(error)}); correct {module}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        got = "none" if found is None else f"{type(found).__name__} {name}"
        raise ValueError(f"{kind} {path}: expected a subclass of torch.nn.Module in {module}, got {got}.")
    return found


def user_modules(modules: Iterable[str]) -> set[str]:
    """Select the names of modules that the user wrote.

    These are all modules outside pyro_vae, torch and pyro.
    """
    return {name for name in modules if name.partition(".")[0] not in ("pyro_vae", "torch", "pyro")}


def user_modules_of(vae: PyroModel) -> set[str]:
    """Return the names of the user's modules that define the model's classes."""
    return user_modules(type(part).__module__ for part in vae.modules())


def place_of_error(error: Exception, modules: Iterable[str]) -> str | None:
    """Return file and line of the user's code that raised an error."""
    files = {getattr(sys.modules.get(name), "__file__", None) for name in user_modules(modules)}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else None


def place_of_method(vae: object, method: str) -> str:
    """Return the file and line of a model's method, if user-defined.

    For a method that this package defines, return "".
    """
    function = inspect.unwrap(getattr(type(vae), method, None) or getattr(vae, method))
    code, module = getattr(function, "__code__", None), str(getattr(function, "__module__", ""))
    if code is None or module.partition(".")[0] == "pyro_vae":
        return ""
    return f"{code.co_filename}, line {code.co_firstlineno}"
