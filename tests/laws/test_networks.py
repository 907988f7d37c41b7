"""Laws of every network in the registry, from images to vectors and back: a new one is tested by its row there."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyro_vae.networks import NETWORKS
from pyro_vae.networks.build import NetworkFactory, check_network

SHAPES = {"encoder": ((1, 8, 8), (6,)), "decoder": ((3,), (1, 8, 8))}
EVERY_NETWORK = pytest.mark.parametrize(
    ("name", "shapes"),
    list(itertools.product(NETWORKS, SHAPES.values())),
    ids=[f"{n}-{s}" for n in NETWORKS for s in SHAPES],
)
JOINED = [name for name, cls in NETWORKS.items() if cls.joined is not None]


def make(name, in_shape, out_shape, seed=0):
    torch.manual_seed(seed)
    return NetworkFactory(name, "tanh")(None, [in_shape], out_shape, (16, 8)).double().eval()


@EVERY_NETWORK
def test_shapes_and_leading_dimensions_are_a_loop(name, shapes):
    net = make(name, *shapes)
    x = torch.randn(4, 5, *shapes[0], dtype=torch.float64)
    y = net(x)
    assert y.shape == (4, 5, *shapes[1])
    for k, b in itertools.product(range(4), range(5)):
        torch.testing.assert_close(y[k, b], net(x[k, b]), rtol=1e-12, atol=1e-12)


@EVERY_NETWORK
def test_both_precisions_agree(name, shapes):
    net = make(name, *shapes)
    x = torch.randn(7, *shapes[0], dtype=torch.float64)
    wide, narrow = net(x), net.float()(x.float())
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


@EVERY_NETWORK
def test_a_saved_network_is_the_same(name, shapes):
    saved, loaded = make(name, *shapes), make(name, *shapes, seed=1)
    x = torch.randn(7, *shapes[0], dtype=torch.float64)
    assert not torch.equal(saved(x), loaded(x))
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(saved(x), loaded(x))


@EVERY_NETWORK
def test_a_gradient_reaches_every_parameter_and_the_input(name, shapes):
    net = make(name, *shapes)
    x = torch.randn(7, *shapes[0], dtype=torch.float64, requires_grad=True)
    net(x).square().sum().backward()
    for tensor in (*net.parameters(), x):
        assert float(tensor.grad.abs().max()) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_arguments_act(name):
    """Hidden layers and activation change the function; without hidden layers it is affine."""
    x = torch.randn(7, 1, 8, 8)
    outputs = []
    for hidden, activation in (((16,), "tanh"), ((16,), "relu"), ((16, 16), "tanh")):
        torch.manual_seed(0)
        outputs.append(NetworkFactory(name, activation)(None, [(1, 8, 8)], (6,), hidden)(x))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))


@pytest.mark.parametrize("name", JOINED)
def test_several_inputs_broadcast_and_equal_their_expansion(name):
    torch.manual_seed(0)
    shapes = [(1, 8, 8), (10,), (3,)]
    net = NetworkFactory(name, "tanh")(None, shapes, (2, 4), (16, 8)).double().eval()
    check_network(net, shapes, (2, 4))
    x, y, z = (
        torch.randn(*lead, *shape, dtype=torch.float64)
        for lead, shape in zip([(6,), (5, 1), (6,)], shapes, strict=True)
    )
    found = net(x, y, z)
    assert found.shape == (5, 6, 2, 4)
    whole = net(*(t.expand(5, 6, *shape) for t, shape in zip((x, y, z), shapes, strict=True)))
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in net.parameters())


def test_a_kind_without_several_inputs_is_refused():
    class Single(torch.nn.Linear):
        def __init__(self, in_shape, out_shape, hidden, activation):
            super().__init__(in_shape[0], out_shape[0])

    make_network = NetworkFactory(Single, "tanh")
    assert isinstance(make_network(None, [(3,)], (2,), ()), Single)
    with pytest.raises(
        ValueError,
        match="network: this model needs networks with several inputs, but Single has one input; choose from mlp",
    ):
        make_network(None, [(3,), (4,)], (2,), ())
    with pytest.raises(ValueError, match="unknown network 'mlpp'.*did you mean 'mlp'"):
        NetworkFactory("mlpp", "tanh")
    with pytest.raises(ValueError, match="network mlp: expected no arguments, got 'mlp:3'; write mlp"):
        NetworkFactory("mlp:3", "tanh")
