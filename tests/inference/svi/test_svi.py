from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample

import pyro_vae as pv
from pyro_vae import SVI, VAE, elbo
from pyro_vae.inference import OPTIMIZERS, NonFiniteLossError
from pyro_vae.inference.svi.optimizer import FusedOptim

X = (torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
OPTIMS = {
    "adam": lambda: pyro.optim.Adam({"lr": 0.01, "betas": (0.8, 0.99)}),
    "adamw": lambda: pyro.optim.AdamW({"lr": 0.01, "weight_decay": 0.1}),
    "sgd": lambda: pyro.optim.SGD({"lr": 0.001, "momentum": 0.9}),
}


def _vae(seed=0):
    torch.manual_seed(seed)
    return VAE((6,), 2, (5,)).double()


def _train(make, optim, steps, vae=None, loss=None, **options):
    vae = vae or _vae()
    pyro.set_rng_seed(7)
    svi = make(vae.model, vae.guide, optim, loss or pyro.infer.Trace_ELBO(), **options)
    losses = [svi.step(X.double()) for _ in range(steps)]
    return losses, [p.detach().clone() for p in vae.parameters()], svi


def test_every_optimizer_is_tested():
    assert OPTIMS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("name", OPTIMS)
def test_same_path_as_pyros_svi(name):
    ours, our_params, svi = _train(SVI, OPTIMS[name](), 20)
    theirs, their_params, _ = _train(pyro.infer.SVI, OPTIMS[name](), 20)
    assert isinstance(svi.fused, FusedOptim)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert len(our_params) == 8
    torch.testing.assert_close(our_params, their_params)


def test_functools_partial_is_taken():
    ours, params, svi = _train(SVI, functools.partial(torch.optim.Adam, lr=0.01), 5)
    theirs, their_params, _ = _train(SVI, pyro.optim.Adam({"lr": 0.01}), 5)
    assert ours == theirs
    torch.testing.assert_close(params, their_params)
    assert isinstance(svi.fused, FusedOptim)


@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.RMSprop({"lr": 0.01}),
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.01 if "weight" in name else 0.02}),
        lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 0.1}),
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.9}),
    ],
)
def test_other_optimizers_keep_pyros_behaviour_and_say_so(optim):
    with pytest.warns(UserWarning, match="not fused"):
        ours, params, _ = _train(SVI, optim(), 6)
    theirs, their_params, _ = _train(pyro.infer.SVI, optim(), 6)
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(params, their_params)


def test_an_object_that_is_no_optimizer_is_refused():
    vae = _vae()
    optimizer = torch.optim.Adam(vae.parameters())
    with pytest.raises(TypeError, match="optim: expected a pyro.optim optimizer"):
        SVI(vae.model, vae.guide, optimizer, elbo("trace"))
    with pytest.raises(ValueError, match="clip_norm: expected a positive number"):
        SVI(vae.model, vae.guide, pyro.optim.Adam({}), elbo("trace"), clip_norm=0.0)


@pytest.mark.parametrize("name", OPTIMS)
def test_state_moves_between_runs_as_in_pyro(name, tmp_path):
    """Stop after 5 steps, save by Pyro's own means, load in a new SVI, go on: the uninterrupted path."""
    whole, whole_params, _ = _train(SVI, OPTIMS[name](), 10)
    vae, optim = _vae(), OPTIMS[name]()
    first, _, _ = _train(SVI, optim, 5, vae)
    random = torch.get_rng_state()
    optim.save(str(tmp_path / "optim"))
    state = optim.get_state()
    assert len(state) == 8
    again = OPTIMS[name]()
    again.load(str(tmp_path / "optim"))
    svi = SVI(vae.model, vae.guide, again, pyro.infer.Trace_ELBO())
    torch.set_rng_state(random)
    rest = [svi.step(X.double()) for _ in range(5)]
    assert first + rest == whole
    torch.testing.assert_close([p.detach() for p in vae.parameters()], whole_params, rtol=0, atol=0)


def test_a_learning_rate_changed_at_the_optimizer_acts():
    vae, optim = _vae(), pyro.optim.Adam({"lr": 0.01})
    _, _, svi = _train(SVI, optim, 3, vae)
    frozen = vae.decoder.head.bias
    optim.optim_objs[frozen].param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in vae.parameters()]
    svi.step(X.double())
    moved = [not torch.equal(a, p.detach()) for a, p in zip(before, vae.parameters(), strict=True)]
    assert moved == [p is not frozen for p in vae.parameters()]


def test_parameters_that_appear_later_are_trained():
    def model(x, late):
        loc = pyro.param("loc", torch.tensor(0.0))
        if late:
            loc = loc + pyro.param("late", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = SVI(model, lambda x, late: None, pyro.optim.Adam({"lr": 0.1}), elbo("trace"))
    x = torch.full((10,), 5.0)
    svi.step(x, False)
    assert list(pyro.get_param_store()) == ["loc"]
    for _ in range(400):
        svi.step(x, True)
    loc, late = pyro.param("loc").item(), pyro.param("late").item()
    assert loc + late == pytest.approx(5.0, abs=0.05)
    assert late > 1.0


def test_momentum_of_a_parameter_whose_first_gradient_comes_later():
    """As Pyro's one optimizer for each parameter: the fused one's state begins at different steps."""

    def model(x, late):
        loc = pyro.param("loc", torch.tensor(0.0))
        extra = pyro.param("extra", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + extra if late else loc, 1.0), obs=x)

    found = []
    for make in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        svi = make(model, lambda x, late: None, pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}), pyro.infer.Trace_ELBO())
        losses = [svi.step(torch.full((10,), 5.0), late) for late in (False, False, True, True, True)]
        found.append([*losses, pyro.param("loc").item(), pyro.param("extra").item()])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_damped_momentum_is_not_fused():
    """Torch does not damp a parameter's first step."""
    with pytest.warns(UserWarning, match="not fused"):
        SVI(lambda: None, lambda: None, pyro.optim.SGD({"lr": 0.01, "momentum": 0.9, "dampening": 0.5}), elbo("trace"))


def _gradient_norm_of_step(clip_norm, batch, subsample=False):
    """The norm of the first SGD step over its learning rate: the gradient that was used, summed over the batch."""
    vae = _vae()

    def wrap(fn):
        return poutine.scale(fn, scale=1.0)

    before = [p.detach().clone() for p in vae.parameters()]
    pyro.set_rng_seed(3)
    SVI(wrap(vae.model), wrap(vae.guide), pyro.optim.SGD({"lr": 1.0}), elbo("trace"), clip_norm=clip_norm).step(batch)
    return math.sqrt(sum((a - p.detach()).square().sum().item() for a, p in zip(before, vae.parameters(), strict=True)))


def test_clip_norm_is_of_the_whole_gradient_per_datum():
    batch = X.double()
    free = _gradient_norm_of_step(None, batch) / len(batch)
    assert _gradient_norm_of_step(free / 2, batch) / len(batch) == pytest.approx(free / 2, rel=1e-4)
    assert _gradient_norm_of_step(free * 2, batch) / len(batch) == pytest.approx(free, rel=1e-9)
    # Every datum twice: the gradient per datum is the same in expectation of scale, and so is the bound on it.
    twice = batch.repeat(2, 1)
    assert _gradient_norm_of_step(free / 2, twice) / len(twice) == pytest.approx(free / 2, rel=1e-4)


@pytest.mark.parametrize("loss", [elbo("trace"), elbo("mean-field"), pyro.infer.Trace_ELBO()])
@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own objective says so first
def test_a_non_finite_loss_stops_before_the_step(loss):
    vae = _vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    with pyro.validation_enabled(False):
        svi.step(X.double())
        with torch.no_grad():
            vae.decoder.head.bias[2] = math.nan
        before = [p.detach().clone() for p in vae.parameters()]
        with pytest.raises(NonFiniteLossError, match=r"step 1: expected a finite loss, got nan: site 'x'") as caught:
            svi.step(X.double())
    assert (caught.value.step, caught.value.site) == (1, "x")
    torch.testing.assert_close([p.detach() for p in vae.parameters()], before, equal_nan=True)
    assert svi.steps_taken == 1


def test_the_guides_site_is_named_too():
    vae = _vae()
    with torch.no_grad():
        vae.encoder.head.bias[0] = math.inf
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo("trace"))
    with pyro.validation_enabled(False), pytest.raises(NonFiniteLossError, match="site 'z'"):
        svi.step(X.double())


def test_validation_names_step_and_site_too():
    """Under Pyro's default validation torch refuses a NaN before there is a loss."""
    vae = _vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo("trace"))
    svi.step(X.double())
    with torch.no_grad():
        vae.encoder.head.bias[0] = math.nan
        vae.decoder.head.bias[0] = math.nan
    with pytest.raises(NonFiniteLossError, match="step 1: .*site 'z'"):  # the guide's site comes first
        svi.step(X.double())
    # What is refused for another reason keeps its own sentence.
    sound = _vae()
    with pytest.raises(ValueError, match="expected pixels that are 0 or 1"):
        SVI(sound.model, sound.guide, pyro.optim.Adam({}), elbo("trace")).step(X.double() / 2)


def test_a_gradient_that_is_not_finite_is_not_clipped_into_the_model():
    class Cusp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, p):
            return p.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    def model(x):
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(Cusp.apply(loc), 1.0), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), elbo("trace"), clip_norm=1.0)
    with pytest.raises(NonFiniteLossError, match="step 0: expected a finite loss, got a gradient of norm nan"):
        svi.step(torch.zeros(5))
    assert pyro.param("loc").item() == 1.0


def test_clip_norm_counts_the_whole_data_of_a_subsampled_plate():
    """The loss of a subsampled plate stands for all N data: its gradient per datum is that of the sum over N."""

    def steps(clip_norm):
        pyro.clear_param_store()

        def model(x):
            loc = pyro.param("loc", torch.tensor(3.0, dtype=torch.float64))
            with pyro.plate("data", 100, subsample=torch.arange(len(x))):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        svi = SVI(model, lambda x: None, pyro.optim.SGD({"lr": 1.0}), elbo("trace"), clip_norm=clip_norm)
        svi.step(torch.zeros(10, dtype=torch.float64))
        return 3.0 - pyro.param("loc").item()

    assert steps(None) == pytest.approx(300.0)  # 3 a datum
    assert steps(1.0) == pytest.approx(100.0, rel=1e-5)  # 1 a datum


def test_evaluate_loss_moves_nothing():
    vae = _vae()
    _, params, svi = _train(SVI, pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}), 3, vae)
    svi.evaluate_loss(X.double())
    torch.testing.assert_close([p.detach() for p in vae.parameters()], params, rtol=0, atol=0)


def test_two_vaes_and_stock_svi_in_one_process():
    """Two instances, trained in turn by Pyro's own SVI, go the ways that each goes alone."""
    alone = []
    for seed in (1, 2):
        pyro.clear_param_store()
        alone.append(_train(pyro.infer.SVI, pyro.optim.Adam({"lr": 0.01}), 5, _vae(seed))[1])
    pyro.clear_param_store()
    together = [_train(pyro.infer.SVI, pyro.optim.Adam({"lr": 0.01}), 5, _vae(seed))[1] for seed in (1, 2)]
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_a_program_in_pyros_own_style_end_to_end():
    """Two plain functions, two latent layers, global parameters: SVI finds the exact posterior and log p(x)."""

    def model(rows):
        top = pyro.param("top", torch.tensor(0.0))
        with pyro.plate("rows", len(rows)):
            a = pyro.sample("a", dist.Normal(top, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("pixels", dist.Normal(b, 1.0), obs=rows)

    def guide(rows):
        w = pyro.param("w", torch.zeros(5))
        s = pyro.param("s", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("rows", len(rows)):
            a = pyro.sample("a", dist.Normal(w[0] + w[1] * rows, s[0]))
            pyro.sample("b", dist.Normal(w[2] + w[3] * rows + w[4] * a, s[1]))

    rows = torch.randn(200, generator=torch.Generator().manual_seed(4)) * math.sqrt(3) + 2
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo("trace", num_particles=10, vectorize_particles=True))
    for _ in range(1500):
        svi.step(rows)
    mean = rows.mean()
    assert float(pyro.param("top").detach()) == pytest.approx(float(mean), abs=0.05)
    exact = dist.Normal(pyro.param("top").detach(), math.sqrt(3)).log_prob(rows)
    estimate = pv.evidence.importance_sampling(model, guide, rows, num_samples=500)
    torch.testing.assert_close(estimate.log_px, exact.double(), rtol=0, atol=0.02)
    bound = elbo("trace", num_particles=100).bound(*pv.handlers.scale_kl_pair(model, guide, 3.0), rows).detach()
    assert 0 < float((estimate.log_px - bound).mean()) < 0.01


def test_check_finite_takes_nothing_and_names_the_site():
    vae = _vae()
    _, params, svi = _train(SVI, pyro.optim.Adam({"lr": 0.01}), 2, vae)
    random = torch.get_rng_state()
    svi.check_finite(X.double())
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close([p.detach() for p in vae.parameters()], params, rtol=0, atol=0)
    assert svi.steps_taken == 2
    norm = torch.nn.BatchNorm1d(6, dtype=torch.float64)
    other = SVI(vae.model, lambda x: vae.guide(norm(x)), pyro.optim.Adam({"lr": 0.01}), elbo("trace"))
    other.check_finite(X.double())
    assert int(norm.num_batches_tracked) == 0
    with torch.no_grad():
        vae.decoder.head.bias[0] = math.inf
    with (
        pytest.warns(UserWarning, match="Encountered"),
        pyro.validation_enabled(False),
        pytest.raises(NonFiniteLossError, match="step 2: .*site 'x'"),
    ):
        svi.check_finite(X.double())


def test_a_pyro_module_with_an_autoguide_goes_the_same_path():
    """Global latent sites, no amortization, another objective of Pyro's: a drop-in for any program."""

    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.weight = PyroSample(dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            self.noise = PyroParam(torch.tensor(1.0, dtype=torch.float64), constraint=constraints.positive)

        def forward(self, x, y):
            mean = x @ self.weight
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(mean, self.noise), obs=y)

    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    paths = []
    for make in (SVI, pyro.infer.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(11)
        model = Regression()
        guide = AutoNormal(model)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.TraceMeanField_ELBO())
        paths.append([svi.step(x, y) for _ in range(30)])
    assert paths[0] == pytest.approx(paths[1], rel=1e-9)
    assert paths[0][-1] < paths[0][0]


def test_modules_are_known_after_the_first_step_and_only_while_they_are_the_same():
    """The second step sends no message for each parameter; a parameter that is replaced is trained all the same."""

    class Count(poutine.messenger.Messenger):
        params = 0

        def _pyro_param(self, msg):
            self.params += 1

    vae = _vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.01}), elbo("trace"))
    seen = []
    for _ in range(3):
        with Count() as count:
            svi.step(X.double())
        seen.append(count.params)
    assert seen == [8, 0, 0]
    vae.decoder.head.bias = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    pyro.clear_param_store()
    before = vae.decoder.head.bias.detach().clone()
    with Count() as count:
        svi.step(X.double())
    assert count.params == 4  # the decoder's
    assert not torch.equal(vae.decoder.head.bias.detach(), before)


def test_parameters_that_a_handler_hides_are_never_taken_for_known():
    vae = _vae()
    svi = SVI(poutine.block(vae.model, hide_types=["param"]), vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo("trace"))
    before = {k: p.detach().clone() for k, p in vae.named_parameters()}
    for _ in range(3):
        svi.step(X.double())
    moved = {k for k, p in vae.named_parameters() if not torch.equal(p.detach(), before[k])}
    assert moved == {k for k in before if k.startswith("encoder")}


def test_the_earlier_name_of_synchronize_still_works():
    assert SVI.settle is SVI.synchronize
