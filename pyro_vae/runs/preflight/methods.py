"""What a model offers besides ``model`` and ``guide``, called on two data: whether it gives what figures and pictures need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.data.labels import are_vectors
from pyro_vae.models.base import mean_image
from pyro_vae.models.protocol import call_with_inputs, num_required_arguments
from pyro_vae.models.user_code import place_of_method
from pyro_vae.runs.preflight.user_errors import at, failed_method


def try_methods(name: str, vae: Any, batch: tuple[Tensor, ...]) -> None:
    """Call what a model offers, and see that it has the kind and shape that figures and pictures need.

    Args:
        name: What the sentences call the model.
        vae: The model.
        batch: Two data, as it takes them.

    Raises:
        ValueError: If a method fails, or gives something else: ``encode``, ``decode`` and ``prior`` a distribution, the
            others a tensor of finite numbers.
    """
    x, size, classes = batch[0], len(batch[0]), getattr(vae, "num_classes", None)
    found = {method: getattr(vae, method, None) is not None for method in ("encode", "decode", "prior", "analogies")}
    _try(name, vae, "encode", lambda: call_with_inputs(vae.encode, batch), (size, -1), of="mean")
    vectors = batch[1] if len(batch) > 1 and are_vectors(batch[1]) else None
    labels = torch.arange(2, device=x.device) % (classes or 1) if vectors is None else vectors[torch.arange(2) % size]
    if found["prior"]:
        _try(name, vae, "prior", lambda: vae.prior(), (2, -1), of="draws")
    if found["decode"] and num_required_arguments(vae.decode) in (1, 2):
        others = (labels,) if num_required_arguments(vae.decode) == 2 else ()
        if found["prior"]:
            _try(
                name, vae, "decode", lambda: vae.decode(vae.prior().sample((2,)), *others), (2, *x.shape[1:]), of="mean"
            )
        if found["encode"]:
            codes = call_with_inputs(vae.encode, batch).mean
            _try(name, vae, "decode", lambda: vae.decode(codes, *(y[:size] for y in others)), tuple(x.shape), of="mean")
    if (classified := _try(name, vae, "classify", lambda: vae.classify(x), (size, classes or -1))) is not None:
        _check_probabilities(name, vae, classified)
    _try(name, vae, "log_px", lambda: call_with_inputs(vae.log_px, batch), (size,))
    _try(name, vae, "reconstruct", lambda: call_with_inputs(vae.reconstruct, batch), tuple(x.shape))
    _try(name, vae, "sample", lambda: vae.sample(2), (2, *x.shape[1:]))
    _try(name, vae, "after_epoch", lambda: _unchanged(vae, batch), tuple(x.shape))
    if found["analogies"] and x.dim() == 4 and vectors is None:
        _try(name, vae, "analogies", lambda: vae.analogies(x, labels[:size]), (size, classes or -1, *x.shape[1:]))


def _check_probabilities(name: str, vae: Any, given: Tensor) -> None:
    """Refuse class probabilities below 0, and rows of them that do not sum to 1, as logits do not."""
    rows = given.double()
    wrong = (rows < 0).any(1) | ((rows.sum(1) - 1).abs() > 1e-3)
    if bool(wrong.any()):
        row, where = rows[wrong][0], at(place_of_method(vae, "classify"))
        raise ValueError(
            f"model {name}.classify: expected probabilities of the classes, which sum to 1, got numbers from "
            f"{float(row.min()):.3g} to {float(row.max()):.3g} that sum to {float(row.sum()):.3g}{where}; "
            "give the softmax of logits."
        )


def _unchanged(vae: Any, batch: tuple[Tensor, ...]) -> Tensor:
    """Call ``after_epoch``, which has no value, and put the model's buffers back; the data."""
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    try:
        vae.after_epoch(*batch)
    finally:
        vae.load_state_dict(state)
    return batch[0]


def _try(name: str, vae: Any, method: str, call: Callable[[], Any], expected: tuple[int, ...], of: str = "") -> Any:
    """Call a method where there is one, and compare what it gives.

    Args:
        name: What the sentences call the model.
        vae: The model.
        method: The method's name.
        call: Calls it.
        expected: The shape, -1 for any size.
        of: What has it: ``""``, the tensor that the method gives; ``"mean"``, that of a distribution; ``"draws"``, two draws.

    Returns:
        What it gives; None where there is none.
    """
    if not hasattr(vae, method):
        return None
    try:
        given = call()
        shape = _shape(given, of)
    except Exception as error:
        if (said := failed_method(name, vae, method, error)) is None:
            raise
        raise ValueError(said) from error
    if shape is None:
        kind, got, where = "a distribution" if of else "a tensor", type(given).__name__, place_of_method(vae, method)
        raise ValueError(f"model {name}.{method}: expected {kind}, got {got}{at(where)}; correct it, or leave it out.")
    if len(shape) != len(expected) or any(e not in (-1, f) for e, f in zip(expected, shape, strict=True)):
        wanted = ", ".join("any" if size == -1 else str(size) for size in expected)
        what = {
            "": "shape",
            "mean": "a distribution whose mean has shape",
            "draws": "a distribution whose draws have shape",
        }
        number = "two" if of == "draws" else f"{expected[0]} data"
        raise ValueError(
            f"model {name}.{method}: expected {what[of]} ({wanted}) of {number}, got {shape}; correct it, or leave it out."
        )
    if isinstance(given, Tensor) and not bool(given.isfinite().all()):
        bad, where = float(given[~given.isfinite()][0]), place_of_method(vae, method)
        raise ValueError(
            f"model {name}.{method}: expected finite numbers, got {bad}{at(where)}; correct it, or leave it out."
        )
    return given


def _shape(given: Any, of: str) -> tuple[int, ...] | None:
    """The shape of a tensor, or of a distribution's mean or draws; None where it is something else."""
    if isinstance(given, Distribution) and of:
        seen = mean_image(given) if of == "mean" else given.sample(torch.Size((2,)))
        return tuple(seen.shape)
    return tuple(given.shape) if isinstance(given, Tensor) and not of else None
