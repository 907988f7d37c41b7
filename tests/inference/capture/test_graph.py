"""Captured steps against eager ones, and every way in which capture was seen to go wrong.

Most tests run the captured graph as it is (``uncompiled``); the slow ones, and a few others, have Inductor compile it.
"""

from __future__ import annotations

import math
import random
import warnings
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.handlers import scale_kl, scale_kl_pair
from pyro_vae.inference import OBJECTIVES, NonFiniteLossError
from pyro_vae.inference.capture import graph as capture
from pyro_vae.inference.capture.side_effects import Watch, unaltered
from pyro_vae.inference.kl.floors import FreeBits, MinimumRate
from pyro_vae.inference.kl.registry import CONTROLS
from pyro_vae.inference.kl.targets import Capacity, TargetRate
from pyro_vae.inference.svi import compiled
from pyro_vae.inference.svi.compiled import CapturedSteps

ROWS = 6
X = torch.rand(ROWS, 4, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture
def uncompiled(monkeypatch):
    """Capture, and run the graph without Inductor: a hundred times faster, the same operations."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)


def vae(**options):
    torch.manual_seed(3)
    made = pv.VAE((4,), 2, (5,), **options)
    return made.model, made.guide


def two_layers():
    """Two latent layers by pyro.param alone, one with a constraint."""

    def model(x):
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(slope * a, 1.0))
            pyro.sample("x", dist.Normal(b[..., None], 1.0).expand((*b.shape, 4)).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.tensor([0.3, 0.4]))
        scale = pyro.param("scale", torch.tensor([0.9, 0.7]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(weight[0] * x.mean(-1), scale[0]))
            pyro.sample("b", dist.Normal(weight[1] * a, scale[1]))

    return model, guide


def bernoulli(baseline=None, enumerate=None):
    """A latent without reparameterized draws."""
    infer = {"baseline": baseline} if baseline else {"enumerate": enumerate} if enumerate else {}

    def model(x):
        effect = pyro.param("effect", torch.tensor([0.3, -0.5, 0.2, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": enumerate} if enumerate else {})
            pyro.sample("x", dist.Bernoulli(logits=effect * z[..., None]).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.tensor([0.4, -0.2, 0.1, 0.3]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x @ weight), infer=infer)

    return model, guide


def positive():
    """A Gamma guide, whose backward pass is implicit."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate[..., None]).expand((*rate.shape, 4)).to_event(1), obs=x)

    def guide(x):
        shape = pyro.param("shape", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(shape + x.sum(-1), 5.0))

    return model, guide


def subsampled():
    def model(x):
        effect = pyro.param("effect", torch.tensor([0.3, -0.5, 0.2, 1.0]))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=effect * z[..., None]).to_event(1), obs=x[rows])

    def guide(x):
        weight, scale = pyro.param("weight", torch.tensor(0.4)), pyro.param("scale", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(weight * x[rows].mean(-1), scale.exp()))

    return model, guide


def noisy():
    """Dropout in the decoder, batch normalization in the encoder."""
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    return vae(
        encoder=_Reshaped(encoder, (4,)), decoder=nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Linear(8, 4))
    )


class _Reshaped(nn.Module):
    """Scale parameters for the encoder's two outputs."""

    def __init__(self, net, shape):
        super().__init__()
        self.net, self.more = net, nn.Linear(2, 4)

    def forward(self, x):
        return self.more(self.net(x))


class Flat(PyroModule):
    """In Pyro's module style, with a guide of Pyro's."""

    def __init__(self):
        super().__init__()
        self.weight = PyroParam(torch.tensor([0.3, -0.4, 0.2, 0.1]))
        self.linear = PyroModule[nn.Linear](1, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = self.linear(z[..., None]) + self.weight
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def module_style():
    torch.manual_seed(3)
    model = Flat()
    return model, AutoNormal(model)


PROGRAMS = {
    "vae": vae,
    "normal likelihood": lambda: vae(likelihood="normal"),
    "continuous": lambda: vae(likelihood="continuous-bernoulli"),
    "two layers": two_layers,
    "bernoulli": bernoulli,
    "enumerated": lambda: bernoulli(enumerate="parallel"),
    "gamma": positive,
    "subsampled": subsampled,
    "noisy": noisy,
    "module style": module_style,
    "weighted": lambda: scale_kl_pair(*vae(), torch.tensor(0.5)),
    "weighted by a number": lambda: scale_kl_pair(*vae(), 0.5),
    "weighted by datum": lambda: scale_kl_pair(*vae(), torch.linspace(0, 2, ROWS)),
    "outer scale": lambda: tuple(poutine.scale(f, scale=0.1) for f in vae()),
}  # fmt: skip
#: Objectives and controls, some with several options.
LOSSES = {
    "trace": lambda: pv.elbo("trace"),
    "trace, 3 draws": lambda: pv.elbo("trace", num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "trace, one by one": lambda: pv.elbo("trace", num_particles=2),
    "mean-field": lambda: pv.elbo("mean-field"),
    "graph": lambda: pv.elbo("graph"),
    "enum": lambda: pv.elbo("enum", strict_enumeration_warning=False, max_plate_nesting=1),
    "iwae": lambda: pv.elbo("iwae", num_particles=3),
    "renyi": lambda: pv.elbo("renyi", num_particles=3, alpha=0.5),
    "dreg": lambda: pv.elbo("dreg", num_particles=3),
    "stl": lambda: pv.elbo("stl", num_particles=2),
    "vimco": lambda: pv.elbo("vimco", num_particles=3),
    "miwae": lambda: pv.elbo("miwae", num_particles=2, num_groups=2),
    "ciwae": lambda: pv.elbo("ciwae", num_particles=3),
    "piwae": lambda: pv.elbo("piwae", num_particles=2, num_groups=2),
    "rws": lambda: pv.elbo("rws", num_particles=3),
    "tvo": lambda: pv.elbo("tvo", num_particles=3),
    "free bits": lambda: FreeBits(pv.elbo("mean-field"), 0.1),
    "minimum rate": lambda: MinimumRate(pv.elbo("trace"), 3.0),
    "capacity": lambda: Capacity(pv.elbo("mean-field"), 5.0, steps=4, weight=3.0),
    "target rate": lambda: TargetRate(pv.elbo("mean-field"), 2.0, integral=0.05),
}
#: What is not defined: score-function terms where there are none, weights where there is no such term.
NOT_FOR = {
    "bernoulli": {"mean-field", "iwae", "renyi", "dreg", "stl", "miwae", "ciwae", "piwae", "free bits", "minimum rate",
                  "capacity", "target rate", "enum"},
    "enumerated": {*LOSSES} - {"enum"},
    "module style": {"free bits"},  # an autoguide gives Deltas, which have no units
    # Dropout draws at every evaluation: these evaluate a guide twice, or compare draws made in two ways.
    "noisy": {"iwae", "renyi", "dreg", "stl", "vimco", "miwae", "ciwae", "piwae", "rws", "tvo"},
    **{name: {"rws", "tvo", "capacity", "target rate"} for name in ("weighted", "weighted by a number")},
    "weighted by datum": {"rws", "tvo", "capacity", "target rate", "free bits", "minimum rate"},
}  # fmt: skip
CELLS = [(o, p) for o in LOSSES for p in PROGRAMS if o not in NOT_FOR.get(p, set())]
#: The thinned table: every objective with one program, every program with one or two objectives.
QUICK = (
    {(o, "vae") for o in LOSSES} | {("trace", p) for p in PROGRAMS} | {("vimco", "bernoulli"), ("enum", "enumerated")}
)
THINNED = [c if c in QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in CELLS]


def test_every_objective_and_control_is_captured():
    """A total correlation is captured in a test beside its module: its batches must not be of one size."""
    kinds = {type(make_loss()) for make_loss in LOSSES.values()}
    assert kinds | {pv.inference.TotalCorrelation} == {*OBJECTIVES.values(), *(row.kind for row in CONTROLS.values())}


def make(objective, program, compile, optim=None, **options):
    pyro.clear_param_store()
    model, guide = PROGRAMS[program]() if isinstance(program, str) else program
    optim = optim or pyro.optim.SGD({"lr": 1e-3})
    return pv.SVI(model, guide, optim, LOSSES[objective](), compile=compile, **options)


def warmed(svi):
    """Create the parameters, and let the objective look at the program, without a step or a random number."""
    with unaltered(Watch(svi.model, svi.guide), svi.objective):
        svi.evaluate_terms((X,), {})
    return svi


def path(svi, steps=3, x=X):
    """Losses, parameters and buffers after some steps from one seed."""
    torch.manual_seed(5)
    losses = [svi.step(x) for _ in range(steps)]
    held = [p.detach().clone() for _, p in sorted(pyro.get_param_store().named_parameters())]
    return losses, held


def same(ours, theirs, rel=2e-5):
    assert ours[0] == pytest.approx(theirs[0], rel=rel)
    torch.testing.assert_close(ours[1], theirs[1], rtol=rel, atol=1e-6)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("objective", "program"), THINNED)
def test_captured_steps_are_the_eager_ones(objective, program):
    """The same noise, the same losses, the same parameters after three steps."""
    eager = path(warmed(make(objective, program, compile=False)))
    svi = warmed(make(objective, program, compile=True))
    ours = path(svi)
    assert svi.compiled
    assert svi._captured.captures == 1
    same(ours, eager)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("objective", "program"), CELLS)
def test_compiled_steps_are_the_eager_ones(objective, program):
    eager = path(warmed(make(objective, program, compile=False)))
    svi = warmed(make(objective, program, compile=True))
    ours = path(svi)
    assert svi.compiled
    same(ours, eager, rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("objective", "program"),
    [("trace", "vae"), pytest.param("trace", "bernoulli", marks=pytest.mark.slow), ("dreg", "two layers")],
)
def test_compiled_by_inductor(objective, program):
    test_compiled_steps_are_the_eager_ones(objective, program)


@pytest.mark.usefixtures("uncompiled")
def test_validation_may_be_on():
    with pyro.validation_enabled(True):
        svi = make("trace", "vae", compile=True)
        same(path(svi), path(make("trace", "vae", compile=False)))
        assert svi.compiled


def test_model_and_guide_have_the_same_subsample_without_validation():
    """Rows drawn in the guide are those of the model: with others, the bound would be of z of one datum and x of another."""
    seen = []

    def model(x):
        with pyro.plate("data", 50, subsample_size=3) as rows:
            seen.append(rows)
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 50, subsample_size=3) as rows:
            seen.append(rows)
            pyro.sample("z", dist.Normal(x[rows], 1.0))

    with pyro.validation_enabled(False):
        for name in ("trace", "mean-field"):
            seen.clear()
            pv.elbo(name).terms(model, guide, torch.randn(50))
            assert torch.equal(*seen)


@pytest.mark.usefixtures("uncompiled")
def test_an_autoguide_that_has_not_looked_at_its_model_yet():
    svi = make("trace", "module style", compile=True)
    svi.step(X)
    assert svi.compiled
    assert len(svi._captured.graphs.popitem()[1].params) == 5  # two of the guide, three of the model


@pytest.mark.usefixtures("uncompiled")
def test_noise_is_fresh_at_every_step():
    svi = warmed(make("trace", "vae", compile=True, optim=pyro.optim.SGD({"lr": 0.0})))
    losses, _ = path(svi, steps=30)
    assert svi._captured.captures == 1
    assert len(set(losses)) == 30


@pytest.mark.usefixtures("uncompiled")
def test_dropout_is_fresh_and_off_in_eval_mode():
    """``training`` is looked at before each step; a change captures anew."""
    losses = []
    for compile in (False, True):
        model, guide = noisy()
        svi = warmed(make("mean-field", (model, guide), compile=compile, optim=pyro.optim.SGD({"lr": 0.0})))
        torch.manual_seed(5)
        losses.append([svi.step(X), svi.step(X)])
        for training in (False, True):
            model.__self__.train(training)
            losses[-1] += [svi.step(X), svi.step(X)]
    assert svi._captured.captures == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(set(losses[1])) == 6


@pytest.mark.usefixtures("uncompiled")
def test_batch_statistics_get_one_update_a_step():
    counted = []
    for compile in (False, True):
        model, guide = noisy()
        svi = make("trace", (model, guide), compile=compile)
        path(svi, steps=4)
        norm = next(m for m in guide.__self__.modules() if isinstance(m, nn.BatchNorm1d))
        counted.append((int(norm.num_batches_tracked), norm.running_mean.clone()))
    assert counted[0][0] == counted[1][0] == 4
    torch.testing.assert_close(counted[0][1], counted[1][1])


@pytest.mark.usefixtures("uncompiled")
def test_capture_takes_no_step_and_no_random_numbers():
    svi = make("target rate", "noisy", compile=True)
    path_of = [p.detach().clone() for p in svi.model.__self__.parameters()]
    before, seen = torch.get_rng_state(), svi.objective.state_dict()["total"].clone()
    svi._captured.entry((X,), {})
    assert svi._captured.captures == 1
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close([*svi.model.__self__.parameters()], path_of, rtol=0, atol=0)
    assert torch.equal(svi.objective.state_dict()["total"], seen)
    assert svi.steps_taken == 0


@pytest.mark.usefixtures("uncompiled")
def test_a_new_batch_shape_is_captured_once_more():
    wide = torch.cat([X, X], 1)[:, ::2]  # the same shape with another data_plate in memory
    losses = []
    for compile in (False, True):
        svi = warmed(make("trace", "vae", compile=compile))
        torch.manual_seed(5)
        losses.append([svi.step(x) for x in (*(X[:rows] for rows in (6, 3, 1, 6, 1, 3)), wide)])
    assert svi._captured.captures == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_too_many_shapes_go_on_eagerly(monkeypatch):
    assert compiled.SHAPES == 16
    monkeypatch.setattr(compiled, "SHAPES", 3)
    svi = make("trace", "vae", compile=True)
    many = torch.rand(40, 4).round()
    for rows in range(1, 4):
        svi.step(many[:rows])
    assert svi.compiled
    with pytest.warns(UserWarning, match="taken eagerly: the arguments have had more than 3 shapes"):
        svi.step(many[:4])
    svi.step(many[:5])
    assert svi.steps_taken == 5
    assert not svi.compiled


@pytest.mark.usefixtures("uncompiled")
def test_a_beta_in_a_tensor_stays_live():
    beta = torch.tensor(1.0)
    model, guide = vae()
    svi = make("mean-field", scale_kl_pair(model, guide, beta), compile=True, optim=pyro.optim.SGD({"lr": 0.0}))
    other = make("mean-field", (model, guide), compile=False, optim=pyro.optim.SGD({"lr": 0.0}))
    for value in (1.0, 0.25, 0.0):
        beta.fill_(value)
        torch.manual_seed(1)
        loss = svi.step(X)
        torch.manual_seed(1)
        terms = other.step_terms(X)
        assert loss == pytest.approx(float(terms.distortion + value * terms.rate), rel=1e-5)
    assert svi._captured.captures == 1


@pytest.mark.usefixtures("uncompiled")
def test_a_beta_that_is_a_number_stays_live():
    model, guide = vae()
    ours, theirs = scale_kl(beta=0.5), scale_kl(beta=0.5)
    svi = make("mean-field", (ours(model), theirs(guide)), compile=True, optim=pyro.optim.SGD({"lr": 0.0}))
    losses = []
    for value in (0.5, 2.0):
        ours.beta = theirs.beta = value
        torch.manual_seed(1)
        losses.append(svi.step(X))
    torch.manual_seed(1)
    terms = make("mean-field", (model, guide), compile=False, optim=pyro.optim.SGD({"lr": 0.0})).step_terms(X)
    assert losses == pytest.approx([float(terms.distortion + b * terms.rate) for b in (0.5, 2.0)], rel=1e-5)
    assert svi._captured.captures == 1


@pytest.mark.usefixtures("uncompiled")
def test_a_running_baseline_is_live():
    """Pyro's decaying mean of the score-function term moves at every captured step as at an eager one."""
    made = [warmed(make("graph", bernoulli({"use_decaying_avg_baseline": True}), compile=c)) for c in (False, True)]
    found = []
    for svi in made:
        pyro.clear_param_store()
        svi = warmed(svi)
        found.append(path(svi, steps=4))
        baseline = pyro.get_param_store()["__baseline_avg_downstream_cost_z"]
        found[-1][1].append(baseline.detach().clone())
    same(*found)
    assert made[1].compiled
    assert float(found[1][1][-1].abs().min()) > 0.1


@pytest.mark.usefixtures("uncompiled")
def test_a_network_baseline_is_live():
    def pair():
        torch.manual_seed(3)
        net = nn.Linear(4, 1)

        def guide(x):
            pyro.module("net", net)
            weight = pyro.param("weight", torch.tensor([0.4, -0.2, 0.1, 0.3]))
            with pyro.plate("data", len(x)):
                baseline = {"nn_baseline": lambda x: net(x).squeeze(-1), "nn_baseline_input": x}
                pyro.sample("z", dist.Bernoulli(logits=x @ weight), infer={"baseline": baseline})

        return bernoulli()[0], guide

    same(*(path(warmed(make("graph", pair(), compile=c)), steps=4) for c in (False, True)))


@pytest.mark.usefixtures("uncompiled")
def test_a_replaced_module_is_captured_again():
    model, guide = vae()
    svi = make("trace", (model, guide), compile=True)
    svi.step(X)
    torch.manual_seed(9)
    model.__self__.decoder = nn.Linear(2, 4)
    pyro.clear_param_store()
    svi.step(X)
    assert svi._captured.captures == 2
    assert any(p is model.__self__.decoder.weight for p in svi._captured.graphs.popitem()[1].params)


@pytest.mark.usefixtures("uncompiled")
def test_a_parameter_that_is_frozen_or_cast_is_captured_again():
    """The same object, but one that learns no longer, or of another type."""
    model, guide = vae()
    module = model.__self__
    svi = make("trace", (model, guide), compile=True)
    svi.step(X)
    module.decoder.requires_grad_(False)
    frozen = [p.detach().clone() for p in module.decoder.parameters()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was not registered in the param store")
        svi.step(X)
    assert svi._captured.captures == 2
    torch.testing.assert_close([*module.decoder.parameters()], frozen, rtol=0, atol=0)
    module.decoder.requires_grad_(True)
    svi.step(X)
    module.double()
    svi.fused.source.optim_objs.clear()
    assert svi.step(X.double()) > 0
    assert svi._captured.captures == 4
    assert {p.dtype for p in module.parameters()} == {torch.float64}


@pytest.mark.usefixtures("uncompiled")
def test_a_restored_parameter_store_is_captured_again():
    svi = make("trace", "two layers", compile=True)
    svi.step(X)
    state = pyro.get_param_store().get_state()
    state["params"] = {name: p.detach().clone().requires_grad_() for name, p in state["params"].items()}
    pyro.get_param_store().set_state(state)
    svi.step(X)
    assert svi._captured.captures == 2


@pytest.mark.usefixtures("uncompiled")
def test_what_no_tensor_holds_is_found_by_comparing():
    """A Python number in a closure goes stale; ``check_every`` finds it, and captures anew."""
    level = [1.0]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(level[0], 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((len(x), 4)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    svi = make("trace", (model, guide), compile=True, check_every=4)
    for _ in range(4):
        svi.step(X)
    level[0] = 30.0
    with pytest.warns(UserWarning, match="at step 4 the compiled step differs from an eager step in loss or gradient"):
        loss = svi.step(X)
    assert svi._captured.captures == 2
    assert loss > 1000


def with_level(read, level):
    """A program that reads its noise level from ``level`` by ``read``."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 4), read(level)).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("read", [
    lambda t: t[0].item(),
    lambda t: float(t[0]),
    lambda t: t.tolist()[0],
    lambda t: float(t.numpy()[0]),
    lambda t: 1.0 if t[0] > 2 else 3.0,
    lambda t: t[t > 0][0],
    lambda t: float(np.asarray(t)[0]),
], ids=["item", "float", "tolist", "numpy", "if", "mask", "asarray"])  # fmt: skip
def test_a_number_taken_out_of_a_tensor_is_not_held(read):
    """A graph would hold it for good, whether the tensor is an argument or not."""
    losses = []
    for compile in (False, True):
        level = torch.tensor([1.0, 1.0])
        svi = warmed(make("trace", with_level(read, level), compile=compile, optim=pyro.optim.SGD({"lr": 0.0})))
        torch.manual_seed(5)
        with pytest.warns(UserWarning, match="taken eagerly: the program takes") if compile else nullcontext():
            losses.append([svi.step(X)])
        level.fill_(5.0)
        losses[-1].append(svi.step(X))
    assert losses[1] == losses[0]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("draw", [lambda _: np.random.rand(), lambda _: random.random()], ids=["numpy", "random"])
def test_noise_that_is_not_torchs_is_not_held(draw):
    losses = []
    for compile in (False, True):
        svi = warmed(make("trace", with_level(draw, None), compile=compile, optim=pyro.optim.SGD({"lr": 0.0})))
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        with pytest.warns(UserWarning, match="another loss or gradient") if compile else nullcontext():
            losses.append([svi.step(X), svi.step(X)])
    assert losses[1] == losses[0]


@pytest.mark.usefixtures("uncompiled")
def test_what_stands_around_a_step_is_seen():
    """Handlers, gradients that the caller left, and ``no_grad``: such a step is an eager one."""
    found = []
    for compile in (False, True):
        svi = warmed(make("trace", "vae", compile=compile))
        torch.manual_seed(5)
        losses = [svi.step(X)]
        with poutine.scale(scale=2.0):
            losses.append(svi.step(X))
        losses.append(svi.loss_and_grads(svi.model, svi.guide, X))
        losses.append(svi.step(X))
        with torch.no_grad():
            losses.append(svi.step(X))
        losses.append(svi.step(X))
        found.append((losses, [p.detach().clone() for p in svi.model.__self__.parameters()]))
        assert svi.compiled is compile
    same(*found)


@pytest.mark.usefixtures("uncompiled")
def test_an_argument_that_may_change_unseen():
    class Settings:
        scale = 1.0

    def model(x, settings):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(-1, 4), settings.scale).to_event(1), obs=x)

    def guide(x, settings):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    svi = make("trace", (model, guide), compile=True)
    with pytest.warns(UserWarning, match="taken eagerly: an argument holds a Settings"):
        svi.step(X, Settings())


@pytest.mark.usefixtures("uncompiled")
def test_a_model_that_is_frozen_at_first():
    svi = make("trace", "vae", compile=True)
    svi.model.__self__.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*requires_grad=False")  # Pyro's own
        svi.step(X)
    svi.model.__self__.requires_grad_(True)
    before = [p.detach().clone() for p in svi.model.__self__.parameters()]
    svi.step(X)
    assert svi._captured.captures == 1
    assert all(not torch.equal(p, b) for p, b in zip(svi.model.__self__.parameters(), before, strict=True))


@pytest.mark.usefixtures("uncompiled")
def test_a_step_that_is_broken_alters_no_state():
    """Neither batch statistics nor the objective's state, though later steps were taken before anyone asked."""
    svi = warmed(make("target rate", "noisy", compile=True))
    svi.step_terms(X)
    svi.synchronize()
    buffers = [b.clone() for b in svi.model.__self__.buffers()]
    state = {k: v.clone() for k, v in svi.objective.state_dict().items()}
    for x in (X * math.nan, X, X):
        svi.step_terms(x)
    with pytest.raises(NonFiniteLossError, match="step 1"):
        svi.synchronize()
    torch.testing.assert_close([*svi.model.__self__.buffers()], buffers, rtol=0, atol=0)
    torch.testing.assert_close(svi.objective.state_dict(), state, rtol=0, atol=0)
    assert math.isfinite(svi.step(X))


@pytest.mark.usefixtures("uncompiled")
def test_a_gradient_on_the_other_side_of_a_kink_is_no_difference(monkeypatch):
    """Rounding may flip a ReLU under one noise: a difference is one under every noise."""
    noises = []

    def flipped(self, seed, *rest):
        noises.append(seed)
        return seed is None or differ_at(self, seed, *rest)

    differ_at = CapturedSteps._differ_at
    monkeypatch.setattr(CapturedSteps, "_differ_at", flipped)
    svi = make("trace", "vae", compile=True)
    same(path(svi), path(make("trace", "vae", compile=False)))
    assert svi.compiled
    assert noises == [None, 1]


def test_differences_that_are_rounding():
    """A rate near 0 is a difference of sums, whose own rounding it carries."""
    ours, theirs = [torch.tensor(0.1516)], [torch.tensor(0.1514)]
    assert not capture.agree(ours, theirs, 1e-3)
    assert capture.agree(ours, theirs, 1e-3, size=68_000.0)
    assert not capture.agree([torch.tensor(1.0)], theirs, 1e-3, size=68_000.0)
    assert not capture.agree([None], theirs, 1e-3)


def test_what_cannot_be_captured_runs_eagerly_and_says_why():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if z.sum().item() > 0:  # the path depends on a draw
                z = 2 * z
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((len(x), 4)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    svi = make("trace", (model, guide), compile=True)
    with pytest.warns(UserWarning, match=r"taken eagerly: the program takes a number .* \(.item\(\)") as said:
        ours = path(svi)
    assert len([w for w in said if "eagerly" in str(w.message)]) == 1
    assert not svi.compiled
    same(ours, path(make("trace", (model, guide), compile=False)))


def test_pyros_own_objectives_run_eagerly():
    model, guide = vae()
    with pytest.warns(UserWarning, match="taken eagerly: expected an objective from pyro_vae.elbo"):
        svi = pv.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO(), compile=True)
    assert svi.step(X) > 0


@pytest.mark.usefixtures("uncompiled")
def test_a_loss_that_is_a_function_is_captured():
    def loss(model, guide, x):
        return pv.elbo("trace").differentiable_loss(model, guide, x)

    found = []
    for compile in (False, True):
        pyro.clear_param_store()
        svi = pv.SVI(*vae(), pyro.optim.Adam({"lr": 1e-2}), loss, compile=compile)
        found.append(path(warmed(svi)))
    assert svi.compiled
    same(*found)


@pytest.mark.usefixtures("uncompiled")
def test_optimizers_of_their_own_and_clipping():
    """An optimizer that is not fused, and a clipped gradient, take the same path captured and eagerly."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*this optimizer is not fused")
        same(*(path(make("trace", "vae", compile=c, optim=pyro.optim.RMSprop({"lr": 1e-2}))) for c in (False, True)))
    for optim in (pyro.optim.Adam({"lr": 1e-2}), pyro.optim.AdamW({"lr": 1e-2})):
        same(*(path(make("iwae", "vae", compile=c, optim=optim, clip_norm=0.05)) for c in (False, True)))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("optim", [pyro.optim.Adam({"lr": 1e-2}), pyro.optim.SGD({"lr": 1e-2, "momentum": 0.9})])
def test_a_loss_that_is_not_finite_is_noticed_later_and_takes_no_step(optim):
    """The steps after it take none either; the replay names step and site, and the state is that of the last good one."""
    model, guide = vae(likelihood="normal")
    svi = make("trace", (model, guide), compile=True, optim=optim)
    torch.manual_seed(5)
    for _ in range(3):
        svi.step_terms(X)
    svi.synchronize()
    good = [p.detach().clone() for p in model.__self__.parameters()]
    spoiled = X.clone()
    spoiled[2, 1] = torch.nan
    svi.step_terms(spoiled)
    for _ in range(2):
        svi.step_terms(X)
    assert svi.steps_taken == 6
    with pytest.raises(NonFiniteLossError, match="step 3: .*site 'z'") as caught:
        svi.synchronize()
    assert (caught.value.step, caught.value.site, svi.steps_taken) == (3, "z", 3)
    torch.testing.assert_close([*model.__self__.parameters()], good, rtol=0, atol=0)
    svi.step(X)  # and one may go on
    assert svi.steps_taken == 4
    assert any(not torch.equal(a, b) for a, b in zip(model.__self__.parameters(), good, strict=True))


@pytest.mark.usefixtures("uncompiled")
def test_steps_that_wait_do_not_pile_up():
    svi = make("trace", "vae", compile=True)
    for _ in range(250):
        svi.step_terms(X)
    assert len(svi._pending) < 100


@pytest.mark.usefixtures("uncompiled")
def test_many_captured_programs_in_one_process():
    """Each trains its own parameters."""
    made = [pv.VAE((4,), 2, (5,)) for _ in range(5)]
    svis = [pv.SVI(v.model, v.guide, pyro.optim.Adam({"lr": 1e-2}), pv.elbo("trace"), compile=True) for v in made]
    before = [[p.detach().clone() for p in v.parameters()] for v in made]
    for k, svi in enumerate(svis):
        for _ in range(k % 3 + 1):
            svi.step(X)
    for v, old in zip(made, before, strict=True):
        assert all(not torch.equal(p, o) for p, o in zip(v.parameters(), old, strict=True))


@pytest.mark.parametrize(("option", "text"), [
    ({"check_every": 0}, "check_every: expected at least 1 step, got 0"),
    ({"precision": "bf17"}, "unknown precision 'bf17': expected one of bf16, float32"),
])  # fmt: skip
def test_bad_options(option, text):
    with pytest.raises(ValueError, match=text):
        make("trace", "vae", compile=True, **option)


@pytest.mark.usefixtures("uncompiled")
def test_bfloat16_is_in_the_networks_alone():
    """Log-probabilities and gradients are float32; the loss is float32's up to the rounding of 8 bits."""
    full, half = (warmed(make("trace", "vae", compile=False, precision=p)) for p in ("float32", "bf16"))
    losses = []
    for svi in (full, half):
        torch.manual_seed(1)
        terms = svi.step_terms(X)
        assert {t.dtype for t in terms} == {torch.float32}
        losses.append(float(terms.loss))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    same(
        path(make("trace", "vae", compile=True, precision="bf16")),
        path(make("trace", "vae", compile=False, precision="bf16")),
    )
