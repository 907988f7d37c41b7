"""Checks of the optional methods of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.data.labels import are_vectors
from pyro_vae.models.base import mean_image
from pyro_vae.models.protocol import PyroModel, call_with_inputs, method_of, num_required_arguments
from pyro_vae.models.user_code import place_of_method
from pyro_vae.runs.preflight.user_errors import in_brackets, method_error

#: Words for a checked shape: that of a tensor, a distribution's mean, or a distribution's draws.
SHAPE_OF = {
    "tensor": "shape",
    "mean": "a distribution whose mean has shape",
    "draws": "a distribution whose draws have shape",
}


def check_methods(name: str, vae: PyroModel, batch: tuple[Tensor, ...]) -> None:
    """Call the methods that a model has, and check what they return.

    Args:
        name: The model's name in the errors.
        vae: The model.
        batch: Inputs of the model for two data.

    Raises:
        ValueError: If a method fails or returns a wrong value. ``encode``, ``decode`` and ``prior`` must return a
            distribution, the other methods a tensor of finite numbers.
    """
    check = _Check(name, vae)
    x, size, classes = batch[0], len(batch[0]), getattr(vae, "num_classes", None)
    vectors = batch[1] if len(batch) > 1 and are_vectors(batch[1]) else None
    labels = torch.arange(2, device=x.device) % (classes or 1) if vectors is None else vectors[torch.arange(2) % size]
    check("encode", lambda encode: call_with_inputs(encode, batch), (size, -1), of="mean")
    check("prior", lambda prior: prior(), (2, -1), of="draws")
    _check_decode(check, vae, batch, labels)
    check("classify", lambda classify: classify(x), (size, classes or -1))
    check("log_px", lambda log_px: call_with_inputs(log_px, batch), (size,))
    check("reconstruct", lambda reconstruct: call_with_inputs(reconstruct, batch), tuple(x.shape))
    check("sample", lambda sample: sample(2), (2, *x.shape[1:]))
    check("after_epoch", lambda hook: _call_after_epoch(vae, hook, batch), tuple(x.shape))
    if x.dim() == 4 and vectors is None:
        check("analogies", lambda analogies: analogies(x, labels[:size]), (size, classes or -1, *x.shape[1:]))


def _check_decode(check: _Check, vae: PyroModel, batch: tuple[Tensor, ...], labels: Tensor) -> None:
    """Decode draws from the prior, and the codes of the data."""
    x, count = batch[0], num_required_arguments(method_of(vae, "decode"))
    if count not in (1, 2):
        return
    others = (labels,) if count == 2 else ()
    if (prior := method_of(vae, "prior")) is not None:
        check("decode", lambda decode: decode(prior().sample((2,)), *others), (2, *x.shape[1:]), of="mean")
    if (encode := method_of(vae, "encode")) is not None:
        codes = call_with_inputs(encode, batch).mean
        check("decode", lambda decode: decode(codes, *(y[: len(x)] for y in others)), tuple(x.shape), of="mean")


def _check_probabilities(name: str, vae: PyroModel, probabilities: Tensor) -> None:
    """Refuse negative probabilities, and rows that do not sum to 1."""
    rows = probabilities.double()
    wrong = (rows < 0).any(1) | ((rows.sum(1) - 1).abs() > 1e-3)
    if bool(wrong.any()):
        row, where = rows[wrong][0], in_brackets(place_of_method(vae, "classify"))
        raise ValueError(
            f"model {name}.classify: expected probabilities of the classes, which sum to 1, got numbers from "
            f"{float(row.min()):.3g} to {float(row.max()):.3g} that sum to {float(row.sum()):.3g}{where}; "
            "return the softmax of logits."
        )


def _call_after_epoch(vae: PyroModel, hook: Callable[..., object], batch: tuple[Tensor, ...]) -> Tensor:
    """Call the hook ``after_epoch``, restore the model, and return the data."""
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    try:
        hook(*batch)
    finally:
        vae.load_state_dict(state)
    return batch[0]


class _Check:
    """Calls methods of a model and checks what they return.

    Args:
        name: The model's name in the errors.
        vae: The model.
    """

    def __init__(self, name: str, vae: PyroModel) -> None:
        self.name, self.vae = name, vae

    def __call__(
        self, method: str, call: Callable[[Callable[..., Any]], object], expected: tuple[int, ...], of: str = "tensor"
    ) -> None:
        """Call a method of the model, if present; check the result.

        Args:
            method: The method's name.
            call: A function that receives the method, calls it, and returns the value.
            expected: The expected shape; -1 allows every size.
            of: The thing that has this shape, such as ``"tensor"`` or ``"draws"``: a key of ``SHAPE_OF``.

        Raises:
            ValueError: If the method fails, or returns a wrong type, a wrong shape or non-finite numbers.
        """
        if (function := method_of(self.vae, method)) is None:
            return
        try:
            value = call(function)
            shape = _shape(value, of)
        except Exception as error:
            if (sentence := method_error(self.name, self.vae, method, error)) is None:
                raise
            raise ValueError(sentence) from error
        where = in_brackets(place_of_method(self.vae, method))
        if shape is None:
            kind, got = "a tensor" if of == "tensor" else "a distribution", type(value).__name__
            self._refuse(method, f"expected {kind}, got {got}{where}")
        elif len(shape) != len(expected) or any(e not in (-1, n) for e, n in zip(expected, shape, strict=True)):
            sizes = ", ".join("any" if size == -1 else str(size) for size in expected)
            number = "two draws" if of == "draws" else f"{expected[0]} data"
            self._refuse(method, f"expected {SHAPE_OF[of]} ({sizes}) for {number}, got {shape}")
        elif isinstance(value, Tensor) and not bool(value.isfinite().all()):
            self._refuse(method, f"expected finite numbers, got {float(value[~value.isfinite()][0])}{where}")
        elif isinstance(value, Tensor) and method == "classify":
            _check_probabilities(self.name, self.vae, value)

    def _refuse(self, method: str, fault: str) -> None:
        raise ValueError(f"model {self.name}.{method}: {fault}; correct or remove the method.")


def _shape(value: object, of: str) -> tuple[int, ...] | None:
    """Return the shape of a value; None for a wrong type."""
    if isinstance(value, Distribution) and of != "tensor":
        seen = mean_image(value) if of == "mean" else value.sample(torch.Size((2,)))
        return tuple(seen.shape)
    return tuple(value.shape) if isinstance(value, Tensor) and of == "tensor" else None
