"""An Apple GPU played by the CPU: tensors that say ``mps``, have no float64, and do not mix with the CPU's.

What a test learns from it is which tensors the package makes where, and with which dtype; not which operations
Apple's kernels have, nor their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

MPS, CPU = torch.device("mps"), torch.device("cpu")
_DEVICE = Tensor.device.__get__
#: Calls that take tensors of several devices.
_FREE = (
    Tensor.__getitem__,
    Tensor.__setitem__,
    Tensor.copy_,
    Tensor.data.__set__,
    Tensor.grad.__set__,
    torch._has_compatible_shallow_copy_type,
)


class Generator(torch.Generator):
    """A generator that says where it was asked to be."""

    def __new__(cls, device: Any = CPU) -> Generator:
        made = super().__new__(cls)
        made.said = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.said


class Apple(TorchFunctionMode):
    """Inside, ``mps`` is a device.

    Attributes:
        dtypes: The dtypes of all tensors that were made there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._there: Any = WeakIdKeyDictionary()
        self.dtypes: set[torch.dtype] = set()

    def is_there(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x in self._there

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, (Tensor, torch.device, str))]
        there = [x for x in given if self.is_there(x)]
        if func == _DEVICE:
            return MPS if there else CPU
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        if there and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")
        target = self._target(func, args, kwargs)
        if there and target is None and func not in _FREE:
            self._refuse_mixed(func, given)
        args, kwargs = tree_map(lambda x: CPU if isinstance(x, torch.device) else x, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        if func is Tensor.to and target is not None:
            args = tuple(CPU if isinstance(x, str) else x for x in args)
        out = func(*args, **kwargs)
        if target == CPU:
            return tree_map(lambda x: x.view_as(x) if self.is_there(x) else x, out)
        if target == MPS:
            out = tree_map(lambda x: x.view_as(x) if isinstance(x, Tensor) and not self.is_there(x) else x, out)
        if target == MPS or there:
            self._place((out, args[0]) if func == Tensor.data.__set__ and self.is_there(args[1]) else out)
        return out

    def _target(self, func: Any, args: Any, kwargs: Any) -> torch.device | None:
        """The device that a call names, if any."""
        if func is Tensor.cpu:
            return CPU
        named = [kwargs.get("device"), *(args[1:] if func is Tensor.to else ())]
        for x in named:
            if self.is_there(x):
                return MPS
            if isinstance(x, (torch.device, str)):
                return torch.device(x)
        return None

    def _refuse_mixed(self, func: Any, given: list[Any]) -> None:
        if any(isinstance(x, Tensor) and not self.is_there(x) and x.dim() for x in given):
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found mps:0 and cpu!")

    def _place(self, out: Any) -> None:
        for x in tree_flatten(out)[0]:
            if isinstance(x, Tensor):
                if x.dtype == torch.float64:
                    raise TypeError(
                        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
                    )
                self.dtypes.add(x.dtype)
                self._there[x] = True
