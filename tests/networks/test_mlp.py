from __future__ import annotations

import pytest
import torch

from pyro_vae.networks import ACTIVATIONS, MLP


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_formula(activation):
    net = MLP((2, 3), (4,), (5, 7), activation)
    x = torch.randn(11, 2, 3)
    h, act = x.flatten(1), ACTIVATIONS[activation]()
    for layer in (net.layers[0], net.layers[2]):
        h = act(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)


def test_no_hidden_layer_is_affine():
    net = MLP((3,), (2,))
    assert sum(p.numel() for p in net.parameters()) == 8
    a, b = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(net(a) + net(b), net(a + b) + net(torch.zeros(3)))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"hidden: expected widths of at least 1, got \[3, -1\]"):
        MLP((3,), (2,), (3, -1))
    with pytest.raises(ValueError, match="unknown activation 'reloo'"):
        MLP((3,), (2,), (), "reloo")
