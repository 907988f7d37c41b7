"""``fit`` with two columns: what is learned, and that it goes on exactly."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.data import Data, Split
from pyro_vae.data.batches import Mixed, Shuffled, Spread
from pyro_vae.inference.training.batching import epoch_order
from pyro_vae.inference.training.options import FitOptions
from pyro_vae.inference.training.validation import evaluate_terms
from pyro_vae.models.semi_supervised import M1


class Classes(nn.Module):
    """p(x|y) of independent binary pixels, a mean for each class; z is of no use, and q(z) = p(z)."""

    takes = ("x", "y")
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, 4))

    def model(self, x, y):
        pyro.module(f"classes_{id(self)}", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[y]).to_event(1), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


class Guessing(Classes):
    """The same, uniform over classes where y is unknown, and so with log p(x) in closed form."""

    def model(self, x, y):
        pyro.module(f"classes_{id(self)}", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.factor("x", torch.where(y < 0, self.log_px(x), self._per_class(x)[range(len(x)), y.clamp(min=0)]))

    def _per_class(self, x):
        return dist.Bernoulli(logits=self.logits).to_event(1).log_prob(x[:, None])

    def log_px(self, x):
        return self._per_class(x).logsumexp(-1) - math.log(3)

    def classify(self, x):
        return self._per_class(x).softmax(-1)


@pytest.fixture
def labelled():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    means = torch.tensor([[0.9, 0.2, 0.5, 0.5], [0.1, 0.8, 0.5, 0.2], [0.5, 0.5, 0.1, 0.9]])
    return (torch.rand(90, 4, generator=generator) < means[y]).float(), y


def test_every_datum_is_fitted_with_its_own_label():
    """The maximum likelihood is the mean of each class: of the 30 rows of each, so many are on."""
    on = torch.tensor([[27, 6, 15, 12], [3, 24, 15, 9], [15, 18, 3, 26]])
    y = torch.arange(90) % 3
    x = (torch.arange(90)[:, None] // 3 < on[y]).float()
    model = Classes()
    fit(model, (x, y), epochs=300, batch_size=90, lr=0.1, lr_schedule="cosine", compile=False, progress=False)
    torch.testing.assert_close(model.logits.detach().sigmoid(), on / 30, rtol=0, atol=1e-4)


def test_validation_asks_a_model_that_classifies_without_labels(labelled):
    x, y = labelled
    model = Guessing()
    with torch.no_grad():
        model.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    data = Data("toy", Split(x, y), Split(x, y))
    (row,) = fit(model, data, epochs=1, lr=1e-30, batch_size=30, progress=False).rows
    assert row["validation_elbo"] == pytest.approx(float(model.log_px(x).detach().mean()), rel=1e-5)
    told = dist.Bernoulli(logits=model.logits.detach()[y]).to_event(1).log_prob(x).mean()
    assert row["train_elbo"] == pytest.approx(float(told), rel=1e-5)
    likelihood, ratio = evaluate_terms(model, (x, y), 0)
    assert float(likelihood.mean()) == pytest.approx(float(told), rel=1e-5)
    assert float(ratio.abs().max()) == 0.0


class Interrupt:
    """Asks to stop at the given question, counted from 1, and after."""

    def __init__(self, question: int) -> None:
        self.left = question

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("per_batch", [None, 4])
@pytest.mark.parametrize("question", [1, 3, 7, 9, 11])
def test_mixed_batches_go_on_exactly_where_they_were_stopped(labelled, per_batch, question):
    x, y = labelled
    hidden = torch.where((torch.arange(90) + torch.arange(90) // 9) % 9 < 2, y, -1)  # 20, of all classes
    data = Data("toy", Split(0.8 * x, hidden), Split(x, y), redraw=True)
    options = {"epochs": 3, "batch_size": 20, "labelled_per_batch": per_batch, "progress": False}
    whole = Guessing()
    history = fit(whole, data, **options)
    states = []
    fit(
        Guessing(), data, interrupt=Interrupt(question),
        callbacks=[lambda t: states.append(copy.deepcopy(t.state_dict()))], **options
    )  # fmt: skip
    resumed = Guessing()
    again = fit(resumed, data, resume=states[-1], **options)
    torch.testing.assert_close(resumed.logits, whole.logits, rtol=0, atol=0)
    assert again["objective"] == history["objective"]
    # 70 data without a label, 16 a batch: each batch has 4 labelled ones, the last one 2.
    assert history["step"] == [5 * k for k in (1, 2, 3)]


def test_means_over_an_epoch_count_labelled_data_as_often_as_they_come(labelled):
    x, y = labelled
    hidden = torch.where((torch.arange(90) + torch.arange(90) // 9) % 9 < 2, y, -1)  # 20, of all classes
    model = Guessing()
    with torch.no_grad():
        model.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    options = {"epochs": 1, "batch_size": 40, "lr": 1e-30, "progress": False}
    (row,) = fit(model, (x, hidden), labelled_per_batch=20, **options).rows
    values = torch.where(hidden < 0, model.log_px(x), model._per_class(x)[range(90), hidden.clamp(min=0)]).detach()
    # 70 unlabelled data, 20 a batch, meet 70 labelled ones: the 20 of them 3.5 times each.
    known, unknown = values[hidden >= 0], values[hidden < 0]
    times = torch.tensor([4.0, 3.0])
    low, high = (float((unknown.sum() + times[k] * known.sum()) / (70 + times[k] * 20)) for k in (0, 1))
    middle = float((unknown.sum() + 3.5 * known.sum()) / 140)
    assert row["train_elbo"] == pytest.approx(
        middle, abs=max(abs(high - middle), abs(low - middle), 10 * float(known.std()) / 140)
    )


def test_one_column_in_a_tuple_trains_as_a_tensor(labelled):
    x, _ = labelled
    trained = []
    for data in (x, (x,), Data("toy", Split(x))):
        torch.manual_seed(0)
        vae = VAE((4,), 2, (5,))
        fit(vae, data, epochs=2, progress=False)
        trained.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    torch.testing.assert_close(trained[1], trained[0], rtol=0, atol=0)
    torch.testing.assert_close(trained[2], trained[0], rtol=0, atol=0)


def test_the_model_says_which_objective_it_wants(labelled):
    class Wanting(VAE):
        objective = "mean-field"

    runs = []
    for cls, words in ((Wanting, {}), (VAE, {"elbo": "mean-field"}), (VAE, {}), (Wanting, {"elbo": "trace"})):
        torch.manual_seed(0)
        runs.append(fit(cls((4,), 2, (5,)), labelled[0], epochs=1, progress=False, **words)["objective"])
    assert runs[0] == runs[1] != runs[2] == runs[3]


def test_a_classifier_has_a_label_in_every_batch_where_they_are_fewer_than_batches(labelled):
    x, y = labelled
    few = torch.where(torch.arange(90) < 3, y, -1)
    model = M1((4,), 2, (5,), num_classes=3)
    for kept, size, kind in (
        (few, 10, Mixed),
        (few, 30, Spread),
        (few, 1, Spread),
        (y, 10, Shuffled),
        (0 * y - 1, 10, Shuffled),
    ):
        order = epoch_order(model, Data("toy", Split(x, kept)), FitOptions(batch_size=size))
        assert type(order) is kind
        if kind is Mixed:
            assert {int((kept[rows] >= 0).sum()) for rows in order(torch.Generator().manual_seed(0)).split(size)} == {1}
    told = Data("toy", Split(x, few))
    assert epoch_order(model, told, FitOptions(batch_size=10, labelled_per_batch=4)).per_batch == 4
    other = SimpleNamespace(takes=("x", "y"))  # it does not classify
    assert isinstance(epoch_order(other, told, FitOptions(batch_size=10)), Spread)
