"""Models with labels, most of them unknown, against exact sums over y and quadratures over one latent unit."""

from __future__ import annotations

import math
import re
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from pyro_vae import elbo, evidence, fit, load, train
from pyro_vae.distributions.relaxed import LogRelaxedCategorical
from pyro_vae.models import registry
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.semi_supervised import M1, M1M2, M2, SDGM
from pyro_vae.models.semi_supervised.m1m2 import LOWER
from pyro_vae.networks.mlp import Joined
from pyro_vae.testing import check_elbo_bounds
from tests.children import ROOT
from tests.oracles import all_binary, within

CLASSES = 3
MODELS = {cls.__name__: cls for cls in registry.MODELS.values() if "y" in cls.takes}
JOINT = ("M2", "M1M2", "ADGM", "SDGM")
SCALES = {
    "encoder": 0.3,
    "upper_encoder": 0.3,
    "auxiliary_encoder": 0.3,
    "upper_decoder": -0.1,
    "auxiliary_decoder": -0.1,
}
X = all_binary(4)[[0, 3, 5, 9, 14, 15, 2, 7]]
LABELS = torch.tensor([0, -1, 2, -1, 1, -1, 0, -1])
UNKNOWN = torch.full_like(LABELS, -1)


def small(name, hidden=(6,), num_classes=CLASSES, **options):
    """A model of 4 binary pixels with one latent unit, its parameters far from small."""
    torch.manual_seed(3)
    model = MODELS[name]((4,), 1, hidden, num_classes=num_classes, **options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
        # Guides wider than what they aim at, so that weights are bounded; priors of inner layers narrower.
        for network, log_scale in SCALES.items():
            if hasattr(model, network):
                getattr(model, network).head.weight[1:] *= 0.1
                getattr(model, network).head.bias[1:] = log_scale
    return model


def hermite(points=80):
    """Nodes and log weights of an integral over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return torch.from_numpy(nodes)[:, None], torch.from_numpy(np.log(weights / math.sqrt(2 * math.pi)))


@torch.no_grad()
def joint(name, model, x):
    """log p(x, y), or log p(x|y) of the conditional model, shape (B, C), by quadrature."""
    z, log_weight = hermite()
    columns = []
    for label in torch.eye(model.num_classes, dtype=torch.float64):
        if name == "SDGM":  # a given z, then x given both
            a = model.decode_auxiliary(z, label)
            inner = a.mean[:, None] + a.base_dist.scale[:, None] * z
            decoded = model.decode(z[:, None], label, inner).log_prob(x[:, None, None])
        elif name == "M1M2":  # z given z2, then x given z
            upper = model.decode_upper(z, label)
            below = upper.mean[:, None] + upper.base_dist.scale[:, None] * z
            decoded = model.decode_lower(below).log_prob(x[:, None, None])
        else:
            decoded = model.decode(z, label).log_prob(x[:, None])
        while decoded.dim() > 1:  # the inner integral first
            decoded = (decoded + log_weight).logsumexp(-1)
        columns.append(decoded)
    return torch.stack(columns, -1) - (0.0 if name == "Conditional" else math.log(model.num_classes))


def marginal(log_joint, y):
    """log p(x, y) where y is known, else log p(x); shape (B,)."""
    return torch.where(y >= 0, log_joint.gather(1, y.clamp(min=0)[:, None])[:, 0], log_joint.logsumexp(1))


@pytest.mark.parametrize("name", [*JOINT, "Conditional"])
def test_the_quadrature_sums_to_one(name):
    """Over all images (and labels), which also says that the decoder is used as the model uses it."""
    total = joint(name, small(name), all_binary(4)).exp().sum(0)
    total = total if name == "Conditional" else total.sum()
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("y", [LABELS, UNKNOWN], ids=["mixed", "unknown"])
def test_log_px_sums_over_labels_that_are_unknown(name, y):
    model = small(name).eval()
    estimate = evidence.importance_sampling(model.model, model.guide, X, y, num_samples=4000, seed=1)
    good = estimate.reliable
    assert int(good.sum()) >= 6
    assert within(estimate.log_px[good], marginal(joint(name, model, X), y)[good], estimate.std_error[good])


def test_log_px_of_the_conditional_model_is_given_y():
    model, y = small("Conditional"), torch.arange(8) % CLASSES
    estimate = evidence.importance_sampling(model.model, model.guide, X, y, num_samples=4000, seed=1)
    exact = joint("Conditional", model, X).gather(1, y[:, None])[:, 0]
    assert within(estimate.log_px, exact, estimate.std_error)


def test_m1_has_the_evidence_of_its_vae():
    model = small("M1")
    z, log_weight = hermite()
    exact = (model.decode(z).log_prob(X[:, None]) + log_weight).logsumexp(1).detach()
    for y in (LABELS, UNKNOWN):
        estimate = evidence.importance_sampling(model.model, model.guide, X, y, num_samples=4000, seed=1)
        assert within(estimate.log_px, exact, estimate.std_error)


@torch.no_grad()
def m2_bound(model, y):
    """Kingma et al.'s L(x, y) where y is known, else their U(x), by quadrature; shape (B,)."""
    nodes, log_weight = hermite()
    q = model.classifier(X).log_softmax(-1)
    bounds = []
    for label in torch.eye(CLASSES, dtype=torch.float64):
        guide = model.encode(X[:, None], label)
        z = guide.mean + guide.base_dist.scale * nodes
        log_w = model.decode(z, label).log_prob(X[:, None]) + model.prior().log_prob(z) - guide.log_prob(z)
        bounds.append((log_weight.exp() * log_w).sum(1) - math.log(CLASSES))
    bounds = torch.stack(bounds, 1)
    free = (q.exp() * (bounds - q)).sum(1)
    return torch.where(y >= 0, bounds.gather(1, y.clamp(min=0)[:, None])[:, 0], free)


@pytest.mark.parametrize("name", ["enum", "trace"])
def test_the_bound_of_m2_is_that_of_the_paper(name):
    """Summed over y, or drawn: the same in expectation."""
    model, copies = small("M2"), 2000
    options = {"max_plate_nesting": 1} if name == "enum" else {}
    with torch.no_grad():
        found = elbo(name, **options).bound(model.model, model.guide, X.repeat(copies, 1), LABELS.repeat(copies))
    found = found.reshape(copies, -1)
    assert within(found.mean(0), m2_bound(model, LABELS), found.std(0) / math.sqrt(copies))


#: Pyro's, of the mark that "trace" does not heed: it draws the label.
DRAWN = pytest.mark.filterwarnings("ignore:.*y_unobserved")


@DRAWN
@pytest.mark.parametrize("objective", ["enum", "trace"])
@pytest.mark.parametrize("name", ["M1", *JOINT])
def test_the_classifiers_term_is_alpha_times_the_mean_over_labelled_data(name, objective):
    """In the loss of 8 data, 4 of them labelled, and in no bound; its gradient goes to the classifier."""
    losses, bounds, means = {}, {}, {}
    for alpha in (0.0, 0.7):
        model = small(name, classifier_weight=alpha)
        options = {"max_plate_nesting": 1, "strict_enumeration_warning": False} if objective == "enum" else {}
        kind = elbo(objective, **options)
        pyro.set_rng_seed(5)
        losses[alpha] = kind.differentiable_loss(model.model, model.guide, X, LABELS)
        pyro.set_rng_seed(5)
        bounds[alpha] = kind.bound(model.model, model.guide, X, LABELS)
        pyro.set_rng_seed(5)
        trace = pyro.poutine.trace(model.guide).get_trace(X, LABELS).nodes
        logits = {
            "M2": lambda m, t: m.classifier(X),
            "M1": lambda m, t: m.classifier(t["z"]["value"]),
            "M1M2": lambda m, t: m.classifier(t["z"]["value"]),
        }.get(name, lambda m, t: m.classifier(X, t["a"]["value"]))(model, trace)
        known = LABELS >= 0
        means[alpha] = logits.log_softmax(-1)[known].gather(1, LABELS[known, None]).mean()
    torch.testing.assert_close(losses[0.0] - losses[0.7], 0.7 * 8 * means[0.7])
    torch.testing.assert_close(bounds[0.0], bounds[0.7])
    gradient = torch.autograd.grad(losses[0.7], model.classifier.head.bias)[0]
    assert bool((gradient != 0).any())


def test_of_m1_labels_train_the_classifier_alone():
    gradients = []
    for y in (LABELS, UNKNOWN):
        model = small("M1")
        pyro.set_rng_seed(5)
        loss = elbo("trace").differentiable_loss(model.model, model.guide, X, y)
        gradients.append(torch.autograd.grad(loss, [*model.encoder.parameters(), *model.decoder.parameters()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_relaxed_label_has_a_density_and_a_bound_of_its_own():
    """In train mode: p(x) over a label of two classes whose log-odds are logistic noise over the temperature."""
    temperature, points = 0.6, 400
    model = small("M2", num_classes=2, temperature=temperature)
    assert model.objective == "trace"
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    first = (uniform.logit() / temperature).sigmoid()
    labels = torch.stack([first, 1 - first], -1)[:, None]
    z, log_weight = hermite(40)
    with torch.no_grad():
        decoded = model.decode(z, labels).log_prob(X[:, None, None])
    exact = (decoded + log_weight).logsumexp((1, 2)) - math.log(points)
    estimate = evidence.importance_sampling(model.model, model.guide, X, UNKNOWN, num_samples=20_000, seed=1)
    good = estimate.reliable
    assert int(good.sum()) >= 6
    assert within(estimate.log_px[good], exact[good], estimate.std_error[good])
    whole = evidence.importance_sampling(model.eval().model, model.guide, X, UNKNOWN, num_samples=4000, seed=1)
    assert within(whole.log_px, joint("M2", model, X).logsumexp(1), whole.std_error)


def test_elbo_enum_of_a_relaxed_label_warns_and_is_trace():
    model, found = small("M2", temperature=0.7), []
    for name in ("enum", "trace"):
        pyro.set_rng_seed(0)
        with pytest.warns(UserWarning, match="found no sample sites") if name == "enum" else nullcontext():
            found.append(elbo(name, max_plate_nesting=1).loss(model.model, model.guide, X, LABELS))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_relaxed_label_is_torchs_over_its_logs():
    """Its density over log y is that over y times the Jacobian, the product of y."""
    logits, y = torch.tensor([0.3, -0.5, 1.0]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    ours = LogRelaxedCategorical(torch.tensor(0.7).double(), logits=logits, validate_args=False).log_prob(y.log())
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.7).double(), logits=logits).log_prob(y)
    torch.testing.assert_close(ours, theirs + y.log().sum())


def options_of(name):
    return {"without_gradient": ("classifier",)} if name == "M1" else {}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("M2", "Conditional") else pytest.mark.slow) for n in MODELS]
)
def test_every_law_holds(name):
    model = small(name).float()
    y = torch.arange(8) % CLASSES if name == "Conditional" else LABELS
    report = check_elbo_bounds(model.model, model.guide, X.float(), y, num_samples=256, **options_of(name))
    assert not report.broken


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
def test_every_law_holds_where_all_labels_are_known_and_against_log_px_where_none_is(name):
    model = small(name)
    y = torch.arange(8) % CLASSES
    assert not check_elbo_bounds(model.model, model.guide, X, y, without_gradient=("classifier",)).broken
    exact = joint(name, model, X).logsumexp(1)
    assert not check_elbo_bounds(model.model, model.guide, X, UNKNOWN, exact=exact).broken


@pytest.mark.slow
@pytest.mark.parametrize("name", [*JOINT])
def test_every_law_holds_of_relaxed_labels(name):
    model = small(name, temperature=0.7)
    assert not check_elbo_bounds(model.model, model.guide, X, LABELS).broken


def test_shapes():
    y = torch.arange(8) % CLASSES
    for name in MODELS:
        model = small(name)
        assert model.sample(7).shape == (7, 4)
        if name != "Conditional":
            assert model.classify(X).shape == (8, CLASSES)
            torch.testing.assert_close(model.classify(X).sum(1), torch.ones(8).double())
        if name == "M1":
            assert model.reconstruct(X).shape == (8, 4)
            continue
        assert model.reconstruct(X, *(() if name == "M1M2" else (y,))).shape == (8, 4)
        assert model.encode(X, y).event_shape == (1,)
        assert model.analogies(X, y).shape == (8, CLASSES, 4)


def test_an_analogy_keeps_the_style_and_changes_the_label():
    model, y = small("M2"), torch.arange(8) % CLASSES
    images = model.analogies(X, y)
    for label in range(CLASSES):
        expected = model.decode(model.encode(X, y).mean, torch.full((8,), label)).base_dist.mean
        torch.testing.assert_close(images[:, label], expected)


def test_vectors_in_place_of_labels():
    """Of one-hot vectors the conditional model makes what it makes of labels."""
    model, y = small("Conditional"), torch.arange(8) % CLASSES
    one_hot = nn.functional.one_hot(y, CLASSES).double()
    torch.testing.assert_close(model.encode(X, y).mean, model.encode(X, one_hot).mean)
    with pytest.raises(ValueError, match=r"expected for each datum a label \(int64\) or a vector of 3"):
        model.encode(X, one_hot[:, :2])


NUMBERS = torch.arange(8) % CLASSES
ONE_HOT = nn.functional.one_hot(NUMBERS, CLASSES)
WRONG = {
    "M2": [NUMBERS.double(), NUMBERS[:, None], ONE_HOT, ONE_HOT.double(), NUMBERS > 0, NUMBERS.byte()],
    "M1": [NUMBERS.double(), ONE_HOT.double()],
    "Conditional": [NUMBERS.double(), NUMBERS[:, None], ONE_HOT, ONE_HOT[:, :2].double(), NUMBERS > 0],
}


@pytest.mark.parametrize(("name", "y"), [(name, y) for name, ys in WRONG.items() for y in ys])
def test_labels_of_a_wrong_kind_are_a_sentence_in_fit(name, y):
    vectors = " or vectors, floats of shape (N, 3)," if name == "Conditional" else ""
    got = f"{'vectors, ' if y.is_floating_point() and y.dim() > 1 else ''}{str(y.dtype)[6:]} of shape {tuple(y.shape)};"
    words = f"labels: expected whole numbers, int64 of shape (N,),{vectors} got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        fit(small(name), (X, y), epochs=1, compile=False, progress=False)


@pytest.mark.parametrize("name", ["M1", *JOINT])
@pytest.mark.parametrize(("y", "got"), [(torch.full((8,), 5), "got 5 in row 0"), (NUMBERS.double(), "got float64")])
def test_labels_of_a_wrong_kind_are_a_sentence_in_the_evidence(name, y, got):
    model = small(name)
    with pytest.raises(ValueError, match=f"^labels: expected whole numbers.*, {got}"):
        evidence.importance_sampling(model.model, model.guide, X, y, num_samples=5)


@pytest.mark.parametrize("name", ["Conditional", *JOINT])
def test_labels_of_a_wrong_kind_are_a_sentence_in_methods(name):
    model = small(name)
    calls = {
        "expected labels from 0 to 2, got 7": lambda: model.sample(2, 7),
        "expected a label for each datum, got -1": lambda: model.sample(2, -1),
        "expected one label, 5 labels, .* got int64 of shape (2,)": lambda: model.sample(5, NUMBERS[:2]),
        "expected one label, 3 labels, .* got float64 of shape (3,)": lambda: model.sample(3, ONE_HOT[0].double()),
        "expected for each datum a label (int64) or a vector of 3 floats, got float64 of shape (3,)": lambda: (
            model.encode(X[:3], NUMBERS[:3].double())
        ),
        "expected for each datum a label (int64) or a vector of 3 floats, got bool of shape (8,)": lambda: model.encode(
            X, NUMBERS > 0
        ),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match="^y: " + words.replace("(", r"\(").replace(")", r"\)")):
            call()
    assert model.sample(2, 1).shape == model.sample(2, ONE_HOT[:2].double()).shape == (2, 4)
    assert model.encode(X[0], ONE_HOT[0].double()).mean.shape == (1,)  # one datum, and its vector


def test_joined_is_the_perceptron_of_its_inputs_side_by_side():
    for hidden in ((), (5,), (5, 4)):
        torch.manual_seed(1)
        net = Joined([(2, 2), (3,)], (6,), hidden, "tanh")
        x, y = torch.randn(3, 1, 7, 2, 2), torch.randn(4, 1, 3)
        h = torch.cat([x.flatten(-2).expand(3, 4, 7, 4), y.expand(3, 4, 7, 3)], -1)
        if hidden:
            weight = torch.cat([net.first[0].weight, net.first[1].weight], 1)
            h = nn.functional.linear(h, weight, net.first[0].bias)
        torch.testing.assert_close(net(x, y), net.head(net.layers(h)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: M2((4,), 1), "num_classes: M2 needs the number of classes, got none"),
        (lambda: M2((4,), 1, num_classes=1), "num_classes: expected at least 2, got 1; one class carries"),
        (lambda: Conditional((4,), 1, num_classes=0), "num_classes: expected at least 1, got 0; give the size"),
        (
            lambda: small("Conditional", num_classes=1).encode(X, 0 * LABELS),
            "y: expected vectors of one float, shape",
        ),
        (lambda: M2((4,), 1, num_classes=3, classifier_weight=-1.0), "classifier_weight: expected at least 0, got -1"),
        (lambda: SDGM((4,), 1, num_classes=3, temperature=0.0), "temperature: expected a number above 0, got 0.0"),
        (lambda: small("Conditional").encode(X, LABELS), "y: expected a label for each datum, got -1"),
        (lambda: small("M2").sample(0), "num_samples: expected at least 1, got 0"),
        (
            lambda: small("M1M2").stand_on(M1((4,), 2, num_classes=3)),
            r"below: expected a VAE with data shape \(4,\) and 1 latent",
        ),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def clusters(num, seed=0):
    """Three patterns of 12 pixels, with noise; their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (num,), generator=generator)
    patterns = torch.eye(3).repeat_interleave(4, 1) * 0.7 + 0.15
    return torch.bernoulli(patterns[y], generator=generator), y


@pytest.mark.parametrize(
    "name", ["M2", pytest.param("M1M2", marks=pytest.mark.slow), pytest.param("SDGM", marks=pytest.mark.slow)]
)
def test_few_labels_are_enough_where_the_data_are_clusters(name):
    x, y = clusters(600)
    shown = torch.full_like(y, -1)
    for label in range(3):
        shown[(y == label).nonzero()[:2, 0]] = label
    torch.manual_seed(0)
    model = MODELS[name]((12,), 2, (16,), "relu", num_classes=3)
    fit(model, (x, shown), epochs=25, batch_size=60, lr=5e-3, labelled_per_batch=6, compile=False, progress=False)
    test, truth = clusters(500, 1)
    accuracy = float((model.classify(test).argmax(1) == truth).double().mean())
    assert accuracy > 0.9, accuracy


def test_layers_of_a_trained_vae_stay_as_they_are():
    vae, model = small("M1"), small("M1M2")
    model.stand_on(vae)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    model.center_output(torch.full((4,), 0.3, dtype=torch.float64))
    fit(model, (X, LABELS), epochs=2, batch_size=4, lr=0.1, compile=False, progress=False)
    for key, value in vae.state_dict().items():
        torch.testing.assert_close(value, before[key])
    assert model.encoder is vae.encoder
    assert not any(p.requires_grad for p in vae.encoder.parameters())


@pytest.mark.parametrize("path", ["runs/vae", Path("runs/vae")])
def test_a_path_below_is_refused_with_the_call_that_loads_it(path):
    with pytest.raises(ValueError, match=r"got the path 'runs/vae', .*pass pyro_vae\.load\('runs/vae'\)\.vae\.$"):
        small("M1M2", below=path)


def test_a_vae_below_of_another_likelihood_is_refused():
    """Else the command would name one that is not there, and binarize pixels for it."""
    vae = small("M1", likelihood="continuous-bernoulli")
    with pytest.raises(ValueError, match="below: expected a VAE with the likelihood bernoulli, got continuous-"):
        small("M1M2", below=vae)
    model = small("M1M2", below=vae, likelihood="continuous-bernoulli")
    assert model.likelihood is vae.likelihood


@pytest.mark.slow
def test_the_command_line_stands_on_a_run(tmp_path):
    """And the run that comes of it is loaded, with the networks of the one below."""
    few = ["--epochs", "1", "--latent-dim", "2", "--hidden", "4", "--device", "cpu", "--quiet", "--num-samples", "2"]
    below, above, other = (str(tmp_path / name) for name in ("below", "above", "other"))
    assert train.main([*few, "--model", "vae", "--run-dir", below]) == 0
    upper = [*few, "--model", "m1m2", "--labels", "20", "--label-seed", "0"]
    assert train.main([*upper, "--run-dir", above, "--model-options", f"below={below}"]) == 0
    vae, model = load(below).vae, load(above).vae
    for name in LOWER:
        for one, same in zip(getattr(vae, name).parameters(), getattr(model, name).parameters(), strict=True):
            torch.testing.assert_close(one, same)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    with pytest.raises(ValueError, match=r"below: expected a trained vae or m1, .* got M1M2"):
        M1M2((1, 8, 8), 2, num_classes=10, below=model)
    assert train.main([*upper, "--run-dir", other, "--model-options", "below=nowhere"]) == 2


@pytest.mark.parametrize("name", JOINT)
def test_pyros_own_enumeration_gives_the_same_loss(name):
    """No label is masked out where it is summed over, so that stock Pyro counts every one once."""
    model, losses = small(name), []
    for objective in (elbo("enum", max_plate_nesting=1), pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)):
        pyro.set_rng_seed(7)
        losses.append(objective.loss(model.model, model.guide, X, LABELS))
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}], ids=["enumerated", "relaxed"])
@pytest.mark.parametrize("name", ["M2", "SDGM"])
def test_a_compiled_run_is_one_that_is_not(name, options):
    """Random numbers are others there: the bounds agree within their errors."""
    x, y = clusters(400)
    shown, rows = torch.where(torch.arange(400) % 4 == 0, y, -1), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = MODELS[name]((12,), 2, (16,), "relu", num_classes=3, **options)
        history = fit(model, (x, shown), epochs=8, batch_size=50, lr=5e-3, compile=compiled, progress=False)
        assert history.compiled == compiled
        rows.append(history.rows[-1]["train_elbo"])
    assert abs(rows[0] - rows[1]) < 0.15


@pytest.mark.slow
def test_the_example_prints_and_draws(monkeypatch, capsys, tmp_path):
    script = ROOT / "examples" / "semi_supervised.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "1", "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert {"conditional:", "m1", "m2", "m1m2", "auxiliary", "sdgm"} <= {
        line.split()[0] for line in printed.splitlines()
    }
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"digits-samples.png", "digits-analogies.png", "digits-labels.png"}
