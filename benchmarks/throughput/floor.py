"""The floor: the products that no training step can do without, and the fused Adam step, with nothing around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.throughput.images import batches
from benchmarks.throughput.rivals import LR, Case, Run

Call = Callable[[], object]


def floor(case: Case) -> Run:
    """Each layer's product forward, with its weights' gradient and, unless it takes the data, its input's gradient."""
    net = case.build()
    params = list(net.parameters())
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    optimizer = torch.optim.Adam(params, lr=LR, fused=True)
    x = next(batches(case.x, case.batch_size, net.data_shape))
    calls = [call for layer, h in inputs_of(net, x) for call in products(layer, h, first=h.data_ptr() == x.data_ptr())]

    @torch.no_grad()
    def run(steps: int) -> float:
        for _ in range(steps):
            for call in calls:
                call()
            optimizer.step()
        if case.x.device.type == "cuda":
            torch.cuda.synchronize()
        return 0.0

    return run


def inputs_of(net: nn.Module, x: Tensor) -> list[tuple[Any, Tensor]]:
    """Linear maps and convolutions, each with the input it has in one evaluation of the loss."""
    found: list[tuple[Any, Tensor]] = []
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [
        m.register_forward_pre_hook(lambda layer, args: found.append((layer, args[0].detach())))
        for m in net.modules()
        if isinstance(m, kinds)
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return found


def products(layer: Any, h: Tensor, first: bool) -> list[Call]:
    """The products of one layer as calls; ``first``: its input needs no gradient."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        y, grad = h @ weight.T, torch.randn(len(h), len(weight), device=h.device)
        to_weight, to_input = torch.empty_like(weight), torch.empty_like(h)
        calls: list[Call] = [
            lambda: torch.mm(h, weight.T, out=y),
            lambda: torch.mm(grad.T, h, out=to_weight),
            lambda: torch.mm(grad, weight, out=to_input),
        ]
        return calls[:2] if first else calls
    transposed, bias = isinstance(layer, nn.ConvTranspose2d), layer.bias.detach()
    geometry = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups)
    grad = torch.randn_like(torch.convolution(h, weight, bias, *geometry))
    backward = torch.ops.aten.convolution_backward
    mask = [not first, True, False]
    return [
        lambda: torch.convolution(h, weight, None, *geometry),
        lambda: backward(grad, h, weight, None, *geometry, mask),
    ]
