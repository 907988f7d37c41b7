from __future__ import annotations

import copy
import math
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import VAE, fit, schedules
from pyro_vae.data import Data, Split
from pyro_vae.inference import FitOptions, NonFiniteLossError, early_stopping
from pyro_vae.inference.svi.optimizer import LR_SCHEDULES
from pyro_vae.inference.training.history import History
from pyro_vae.inference.training.validation import evaluate_terms
from pyro_vae.models.semi_supervised import M2


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(90, 6, generator=generator)
    return Data("toy", Split(grey), Split((grey[:30] < 0.5).float()), Split((grey[30:50] < 0.5).float()), redraw=True)


def _vae(seed=0):
    torch.manual_seed(seed)
    return VAE((6,), 2, (5,))


def _parameters(vae):
    return [p.detach().clone() for p in vae.parameters()]


class Stop(Exception):
    pass


def _interrupt_after(epochs, states):
    def callback(training):
        if len(training.history) == epochs:
            states.append(copy.deepcopy(training.state_dict()))
            raise Stop

    return callback


OPTIONS = [
    {},
    {"elbo": "mean-field", "beta": schedules.linear(0.0, 1.0, 9)},
    {"optimizer": "sgd", "lr_schedule": "step", "lr": 1e-4, "clip_norm": 0.1},
    {"optimizer": "adamw", "lr_schedule": "cosine", "beta": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("with_validation", [True, False])
def test_a_resumed_run_equals_the_uninterrupted_one(data, options, with_validation):
    if not with_validation:
        data = Data("toy", data.train, redraw=True)
    whole, last = _vae(), []
    history = fit(
        whole,
        data,
        epochs=6,
        batch_size=25,
        progress=False,
        callbacks=[lambda t: last.append(t.state_dict())],
        **options,
    )
    states = []
    with pytest.raises(Stop):
        fit(_vae(), data, epochs=6, batch_size=25, progress=False, callbacks=[_interrupt_after(3, states)], **options)
    torch.randn(17)  # the caller's generator moves on in between
    resumed, end = _vae(seed=99), []
    again = fit(
        resumed, data, epochs=6, batch_size=25, progress=False, resume=states[0],
        callbacks=[lambda t: end.append(t.state_dict())], **options
    )  # fmt: skip
    torch.testing.assert_close(_parameters(resumed), _parameters(whole), rtol=0, atol=0)
    for key in ("model", "optimizer", "random", "order", "step"):
        torch.testing.assert_close(end[-1][key], last[-1][key], rtol=0, atol=0)
    clock = {"seconds", "images_per_second"}
    assert [{k: v for k, v in r.items() if k not in clock} for r in again.rows] == [
        {k: v for k, v in r.items() if k not in clock} for r in history.rows
    ]
    assert (len(end), len(last)) == (3, 6)


class Interrupt:
    """Asks to stop at the given question, counted from 1, and after."""

    def __init__(self, question: int) -> None:
        self.left = question

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.thin(3)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("question", range(1, 20))
def test_a_run_stopped_at_any_step_or_validation_goes_on_exactly(data, options, question):
    whole, last = _vae(), []
    history = fit(
        whole,
        data,
        epochs=3,
        batch_size=25,
        progress=False,
        callbacks=[lambda t: last.append(t.state_dict())],
        **options,
    )
    states = []
    stopped = fit(
        _vae(),
        data,
        epochs=3,
        batch_size=25,
        progress=False,
        interrupt=Interrupt(question),
        callbacks=[lambda t: states.append(copy.deepcopy(t.state_dict()))],
        **options,
    )
    # An epoch asks after each of four steps, before validation and after the callbacks; the last but two end training.
    epochs, asked = divmod(question - 1, 6)
    steps = 4 * epochs + min(asked + 1, 4)
    assert (stopped.steps, len(stopped)) == ((steps, epochs + (asked == 5)) if question < 19 else (12, 3))
    assert stopped.stopped_by == ("interrupted" if question < 18 else "epochs")
    assert (states[-1]["epoch"] is None) == (asked == 5 or question > 17)
    resumed, end = _vae(seed=99), [states[-1]]
    again = fit(
        resumed, data, epochs=3, batch_size=25, progress=False, resume=states[-1],
        callbacks=[lambda t: end.append(t.state_dict())], **options
    )  # fmt: skip
    torch.testing.assert_close(_parameters(resumed), _parameters(whole), rtol=0, atol=0)
    for key in ("model", "best", "optimizer", "random", "order", "step"):
        torch.testing.assert_close(end[-1][key], last[-1][key], rtol=0, atol=0)
    clock = {"seconds", "images_per_second"}
    assert [{k: v for k, v in r.items() if k not in clock} for r in again.rows] == [
        {k: v for k, v in r.items() if k not in clock} for r in history.rows
    ]


def test_the_time_of_a_stopped_epoch_is_that_of_both_its_parts(data):
    def slowly(seconds):
        def ask():
            time.sleep(seconds)
            return next(answers)

        return ask

    states, answers = [], iter([False, True, True])
    fit(
        _vae(),
        data,
        epochs=1,
        batch_size=25,
        progress=False,
        interrupt=slowly(0.1),
        callbacks=[lambda t: states.append(t.state_dict())],
    )
    answers = iter([False] * 9)
    (row,) = fit(_vae(), data, epochs=1, batch_size=25, progress=False, resume=states[0], interrupt=slowly(0.05)).rows
    assert 0.3 < row["seconds"] < 0.3 + 2 * 0.05 + 1
    assert row["images_per_second"] == pytest.approx(90 / row["seconds"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s["model"].popitem(), "expected the model's parameter .*, got none"),
        (
            lambda s: s["model"].update({"encoder.head.bias": torch.zeros(7)}),
            r"of shape \(4,\), got shape \(7,\)",
        ),
        (lambda s: s.pop("rows"), "expected a complete checkpoint, got one without rows"),
        (lambda s: s.update(step="3"), "expected int under the key 'step', got str"),
        (lambda s: s.update(step=9), "expected as many steps as the epochs have, got 9 after 0 epochs"),
        (lambda s: s.update(random=torch.zeros(3)), "expected the state of a random generator under the key 'random'"),
        (lambda s: s["epoch"].update(seen=17), "expected 50 data in 2 steps of an epoch, got 17"),
        (lambda s: (s["epoch"].update(batches=-1, seen=-25), s.update(step=-1)), "expected -25 data in -1 steps"),
        (lambda s: s["optimizer"].update(nothing={}), "got another for 'nothing'"),
    ],
)
def test_a_state_that_is_not_of_this_run_is_refused_with_a_sentence(data, change, sentence):
    states = []
    callbacks = [lambda t: states.append(copy.deepcopy(t.state_dict()))]
    fit(_vae(), data, epochs=1, batch_size=25, progress=False, interrupt=Interrupt(2), callbacks=callbacks)
    change(states[0])
    with pytest.raises(ValueError, match=sentence) as caught:
        fit(_vae(), data, epochs=1, batch_size=25, progress=False, resume=states[0])
    assert str(caught.value).startswith("resume: expected")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_of_another_device_goes_on_with_a_warning_and_other_numbers(data, epochs):
    """From within an epoch or after one: every step is taken, from the saved parameters."""
    states, stop = [], Interrupt(2) if epochs == 1 else lambda: False
    callbacks = [lambda t: states.append(copy.deepcopy(t.state_dict()))]
    fit(_vae(), data, epochs=1, batch_size=25, progress=False, interrupt=stop, callbacks=callbacks)
    exact, other = _vae(), _vae()
    fit(exact, data, epochs=epochs, batch_size=25, progress=False, resume=copy.deepcopy(states[0]))
    states[0]["device"] = "cuda"
    with pytest.warns(UserWarning, match="began on cuda and continues on cpu, with other random numbers"):
        history = fit(other, data, epochs=epochs, batch_size=25, progress=False, resume=states[0])
    assert [row["step"] for row in history.rows] == [4 * (k + 1) for k in range(epochs)]
    pairs = list(zip(_parameters(exact), _parameters(other), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(torch.allclose(a, b, atol=0.05) for a, b in pairs)  # a few steps of 1e-3 apart


def test_a_state_of_another_model_is_refused_with_the_first_difference(data):
    states = []
    fit(_vae(), data, epochs=1, progress=False, callbacks=[lambda t: states.append(t.state_dict())])
    with pytest.raises(ValueError, match=r"'encoder\..*' of shape \(7, 6\), got shape \(5, 6\)"):
        fit(VAE((6,), 2, (7,)), data, epochs=2, progress=False, resume=states[0])


def test_the_seed_decides(data):
    runs = []
    for seed, noise in ((0, 1), (0, 7), (1, 1)):
        vae = _vae()
        torch.manual_seed(noise)  # what ran before does not matter
        fit(vae, data, epochs=2, seed=seed, progress=False)
        runs.append(_parameters(vae))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.equal(runs[0][0], runs[2][0])


def test_the_callers_store_and_generator_are_left_as_they_were(data):
    mine = pyro.param("mine", torch.tensor(3.0))
    vae = _vae()
    before = torch.get_rng_state()
    fit(vae, data, epochs=1, progress=False)
    assert list(pyro.get_param_store()) == ["mine"]
    assert pyro.param("mine") is mine
    assert torch.equal(torch.get_rng_state(), before)


def test_two_vaes_and_one_fitted_twice_do_not_disturb_each_other(data):
    alone = [_vae(1), _vae(2)]
    for vae in alone:
        fit(vae, data, epochs=2, progress=False)
    first, second = _vae(1), _vae(2)
    fit(first, data, epochs=2, progress=False)
    after_first = _parameters(first)
    fit(second, data, epochs=2, progress=False)
    torch.testing.assert_close(_parameters(first), after_first, rtol=0, atol=0)
    torch.testing.assert_close(_parameters(second), _parameters(alone[1]), rtol=0, atol=0)
    fit(first, data, epochs=2, progress=False)
    assert not torch.equal(_parameters(first)[0], after_first[0])


def test_rows_are_true_bounds_whatever_beta(data):
    vae = _vae()
    history = fit(vae, data, epochs=3, batch_size=25, beta=schedules.linear(0.0, 4.0, 12), progress=False)
    for row in history.rows:
        assert row["train_elbo"] == pytest.approx(-row["train_rate"] - row["train_distortion"])
        assert row["validation_elbo"] == pytest.approx(-row["validation_rate"] - row["validation_distortion"])
        assert row["validation_elbo_std_error"] > 0
    assert history["beta"] == pytest.approx([4 * 3 / 12, 4 * 7 / 12, 4 * 11 / 12])
    assert history["step"] == [4, 8, 12]
    assert all(row["objective"] != pytest.approx(row["train_elbo"]) for row in history.rows)
    plain = fit(_vae(), data, epochs=1, progress=False)
    assert plain["objective"] == pytest.approx(plain["train_elbo"])


def test_validation_elbo_is_that_of_the_model(data):
    vae = _vae()
    history = fit(vae, data, epochs=1, progress=False)
    bounds = pv.elbo("trace", num_particles=3000, vectorize_particles=True).bound(
        vae.model, vae.guide, data.validation.x
    )
    exact = float(bounds.detach().mean())
    # One draw a datum, against 3,000: its own scatter over data and draws.
    assert abs(history.rows[0]["validation_elbo"] - exact) < 4 * history.rows[0]["validation_elbo_std_error"]


def test_validation_uses_the_same_draws_at_every_epoch(data):
    rows = fit(_vae(), data, epochs=3, lr=1e-30, progress=False).rows
    assert len({row["validation_elbo"] for row in rows}) == 1


def test_a_schedule_that_goes_astray_is_stopped(data):
    with pytest.raises(
        ValueError, match="beta: expected finite numbers of at least 0 from the schedule, got -5.0 at step 1"
    ):
        fit(_vae(), data, epochs=2, beta=lambda step: 1.0 if step < 1 else -5.0, progress=False)


def test_empty_data_are_refused():
    with pytest.raises(ValueError, match="data: expected at least one training datum, got none"):
        fit(_vae(), torch.zeros(0, 6), progress=False)


def test_means_are_over_data_not_over_batches():
    """With lr so small that nothing moves, an epoch's training ELBO is that of the data, uneven last batch or not."""
    x = (torch.rand(50, 6, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    x[40:] = 1.0
    vae = _vae()
    even, uneven = (
        fit(vae, Data("toy", Split(x)), epochs=200, batch_size=size, lr=1e-12, optimizer="sgd", progress=False)
        for size in (50, 47)
    )
    a, b = torch.tensor(even["train_elbo"]), torch.tensor(uneven["train_elbo"])
    error = math.sqrt(float(a.var() + b.var()) / 200)
    assert abs(float(a.mean() - b.mean())) < 4 * error
    assert error < 0.05


def test_the_best_epoch_is_kept(data):
    vae = _vae()
    states = []

    def damage(training):
        states.append(_parameters(training.model))
        if len(states) == 4:
            with torch.no_grad():
                training.model.decoder.head.bias.fill_(9.0)

    history = fit(vae, data, epochs=8, progress=False, callbacks=[damage])
    best = max(range(8), key=lambda i: history["validation_elbo"][i])
    assert history.best_epoch == best + 1 <= 4
    torch.testing.assert_close(_parameters(vae), states[best], rtol=0, atol=0)


def test_without_validation_the_last_epoch_is_kept(data):
    vae, states = _vae(), []
    data = Data("toy", data.train, redraw=True)
    history = fit(
        vae, data, epochs=3, lr=0.5, progress=False, callbacks=[lambda t: states.append(_parameters(t.model))]
    )
    assert history.best_epoch == 3
    torch.testing.assert_close(_parameters(vae), states[-1], rtol=0, atol=0)


def test_patience_stops_and_says_so(data):
    history = fit(_vae(), data, epochs=200, lr=0.5, progress=False, callbacks=[early_stopping(4)])
    assert history.stopped_by == "patience"
    assert len(history) == history.best_epoch + 4 < 200
    with pytest.raises(ValueError, match="patience: expected at least 1 epoch, got 0"):
        early_stopping(0)


#: Factors of the learning rate at the start, in the middle and at the end of training.
LR_FACTORS = {"constant": [1, 1, 1], "cosine": [1, 0.5, 0], "step": [1, 0.1, 0.01]}


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_learning_rate_schedules(name):
    assert [LR_SCHEDULES[name](done) for done in (0.0, 0.5, 1.0)] == pytest.approx(LR_FACTORS[name])


def test_a_learning_rate_schedule_acts(data):
    rates = fit(_vae(), data, epochs=4, lr=0.01, lr_schedule="step", progress=False)["lr"]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    frozen = _vae()
    before = _parameters(frozen)
    fit(frozen, data, epochs=1, lr=1e-30, lr_schedule="cosine", progress=False)
    torch.testing.assert_close(_parameters(frozen), before, rtol=0, atol=1e-9)


def test_a_schedule_longer_than_training_warns(data):
    with pytest.warns(UserWarning, match="takes 100 steps, but training has only 3"):
        fit(_vae(), data, epochs=3, beta=schedules.linear(0.0, 1.0, 100), progress=False)


def test_a_nan_stops_training_with_its_site(data):
    def poison(training):
        if len(training.history) == 2:
            with torch.no_grad():
                training.model.decoder.head.bias[0] = math.nan

    with pytest.raises(NonFiniteLossError, match=r"step 2: .*site 'x'"):
        fit(_vae(), data, epochs=5, progress=False, callbacks=[poison])


def test_a_tensor_is_data(capsys):
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(50, 1)
    torch.manual_seed(0)
    vae = VAE((4,), 1, (8,))
    history = fit(vae, x, epochs=60, lr=0.02, batch_size=20)
    assert -2.5 * math.log(2) < history["train_elbo"][-1] < -math.log(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 62
    assert "60/60" in lines[-1]


def test_evaluation_repeats_and_leaves_the_mode(data):
    vae = _vae().train()
    first, second = (torch.stack(evaluate_terms(vae, data.test.x, 3)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert vae.training
    assert not torch.equal(first, torch.stack(evaluate_terms(vae, data.test.x, 4)))


def test_parameters_that_fit_cannot_save_are_refused(data):
    class Loose(nn.Module):
        def model(self, x):
            loc = pyro.param("loose", torch.zeros(6))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Bernoulli(logits=loc).to_event(1), obs=x)

        def guide(self, x):
            pass

    with pytest.raises(ValueError, match="parameter 'loose': expected a parameter of the model's modules"):
        fit(Loose(), data, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number, got float 1.5"),
        ({"epochs": 2.0}, "epochs: expected a whole number, got float 2.0"),
        ({"epochs": "3"}, "epochs: expected a whole number, got str '3'"),
        ({"batch_size": None}, "batch_size: expected a whole number, got NoneType None"),
        ({"num_workers": -1}, "num_workers: expected at least 0, got -1"),
        ({"num_workers": None}, "num_workers: expected a whole number, got NoneType None"),
        ({"lr": "a"}, "lr: expected a positive number, got str 'a'"),
        ({"lr": None}, "lr: expected a positive number, got NoneType None"),
        ({"clip_norm": "a"}, "clip_norm: expected a positive number, got str 'a'"),
        ({"lr": -1.0}, "lr: expected a positive number"),
        ({"lr": math.nan}, "lr: expected a positive number"),
        ({"clip_norm": 0.0}, "clip_norm: expected a positive number"),
        ({"beta": -1.0}, "beta: expected a finite number of at least 0"),
        ({"elbo": "trase"}, "did you mean 'trace'"),
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_bad_options_are_refused(data, options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        fit(_vae(), data, progress=False, **options)


def test_options_are_given_by_keyword():
    assert FitOptions(epochs=1, batch_size=2, lr=0.5).lr == 0.5
    with pytest.raises(TypeError, match="positional"):
        FitOptions(1, 2, "adam", 1e-3)


def test_pyros_own_objective_has_no_terms(data):
    with pytest.raises(TypeError, match=r"expected an objective from pyro_vae.elbo, got Trace_ELBO"):
        fit(_vae(), data, elbo=pyro.infer.Trace_ELBO(), epochs=1, progress=False)


def test_an_epoch_that_ends_in_nonsense_is_not_kept(data):
    """One step of a huge learning rate: its loss was finite, what it leaves is not."""
    kept = []
    with pytest.raises(NonFiniteLossError, match="step 1: expected a finite loss"):
        fit(_vae(), data, epochs=3, lr=1e30, progress=False, callbacks=[lambda t: kept.append(1)])
    assert kept == []


def test_a_validation_elbo_that_is_no_number_is_never_the_best():
    rows = [{"validation_elbo": value} for value in (math.nan, -3.0, -2.0, math.nan, -4.0)]
    assert History(rows).best_epoch == 3


def test_a_stop_reason_survives_the_checkpoint(data):
    states = []
    options = {"epochs": 50, "lr": 0.5, "progress": False}
    callbacks = [early_stopping(3), lambda t: states.append(copy.deepcopy(t.state_dict()))]
    history = fit(_vae(), data, callbacks=callbacks, **options)
    assert history.stopped_by == "patience"
    again = fit(_vae(), data, resume=states[-1], callbacks=callbacks, **options)
    assert (len(again), again.stopped_by) == (len(history), "patience")


def test_enum_without_a_site_to_sum_over_is_one_sentence():
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    for model, data in (
        (VAE((4,), 1, (3,)), x),
        (M2((4,), 1, (3,), num_classes=2, temperature=0.7), (x, torch.arange(6) % 3 - 1)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # a warning is no error outside the tests
            with pytest.raises(
                ValueError, match="^elbo enum: the model has no discrete site to sum over.*use elbo='trace'"
            ):
                fit(model, data, elbo="enum", epochs=1, progress=False)
