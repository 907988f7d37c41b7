"""Precision ``bf16``: the products of networks in bfloat16, everything else in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: The functions that compute the products of networks. Distributions call none of these functions.
PRODUCTS = {
    F.linear, F.bilinear, F.scaled_dot_product_attention, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d,
}  # fmt: skip


class BFloat16Products(TorchFunctionMode):
    """Mode that runs linear maps, convolutions and attention in bfloat16.

    The factors, the products and their gradients are rounded to 8 bits of mantissa; the hardware sums in float32. The
    results are converted to float32. Activations, parameters, log-probabilities, the KL and all sums stay float32.
    float64 tensors are not converted.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, in bfloat16 if ``func`` is in ``PRODUCTS``."""
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(_single(a) for a in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        args = tuple(_rounded(a) for a in args)
        return func(*args, **{k: _rounded(v) for k, v in kwargs.items()}).float()


def _single(x: object) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.dtype == torch.float32


def _rounded(x: object) -> object:
    return x.to(torch.bfloat16) if _single(x) else x


#: Context managers in which the loss is evaluated; the keys are names of precisions.
PRECISIONS: dict[str, Callable[[], AbstractContextManager[object]]] = {"float32": nullcontext, "bf16": BFloat16Products}
