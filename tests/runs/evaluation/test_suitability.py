"""Checks and estimators that do not suit a model are refused in a sentence, before anything is estimated."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import evaluate, report, train
from pyro_vae.data import Inputs
from pyro_vae.models.protocol import classifies, takes
from pyro_vae.models.registry import MODELS, make
from pyro_vae.runs.evaluation import summary
from pyro_vae.runs.evaluation.checks import CHECKS
from pyro_vae.runs.evaluation.estimators import ESTIMATORS, Estimation
from pyro_vae.runs.evaluation.suitability import check_obstacle, check_suitable, estimator_obstacle

#: What does not suit a model, with a part of the reason; all else does.
REFUSED = {
    "autoencoder": {
        "gaps": "the guide needs parameters to move",
        "aggregate": "expected codes with a density",
        "calibration": "the model has no prior to draw from",
    }
}
LABELLED = {"m2": ["y_unobserved", "z"], "m1m2": ["y_unobserved", "z", "z2"]}
LABELLED |= {name: ["a", "y_unobserved", "z"] for name in ("auxiliary", "sdgm")}
REFUSED |= {
    name: {"aggregate": f"expected one latent site, got {len(sites)}: {', '.join(sites)}"}
    for name, sites in LABELLED.items()
}


def columns_of(model):
    """Six images, with labels for a model that takes them."""
    torch.manual_seed(0)
    x, known = torch.rand(6, 1, 4, 4).round(), torch.arange(6) % 3
    labels = torch.full((6,), -1) if classifies(model) else known
    return Inputs(x, labels) if "y" in takes(model) else Inputs(x)


def test_the_table_holds_models_alone():
    """A model that is not in the table has to take every check and estimator."""
    assert set(REFUSED) <= set(MODELS)


#: Those that take long, and have what `m2` has.
LONG = {"m1m2", "auxiliary", "sdgm"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in MODELS])
@pytest.mark.thin(3)
def test_what_suits_a_model(name):
    torch.manual_seed(0)
    model = make(name, {"data_shape": (1, 4, 4), "latent_dim": 2, "hidden": (4,), "num_classes": 3})
    columns, wrong = columns_of(model), REFUSED.get(name, {})
    found = {check: check_obstacle(model, columns, check) for check in CHECKS}
    if name != "autoencoder":  # which the command refuses before it asks
        found["bidirectional"] = estimator_obstacle(model, columns, Estimation(), "bidirectional")
    for asked, why in found.items():
        assert (why is None) == (asked not in wrong), (asked, why)
        assert why is None or wrong[asked] in why


TINY = ["--epochs", "1", "--latent-dim", "2", "--num-samples", "5", "--quiet", "--device", "cpu"]


def trained(name, folder):
    own = ["--labels", "50"] if name in LABELLED else []
    own += [] if name == "linear" else ["--hidden", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_pictures", lambda *args: [])
        assert train.main([*TINY, "--model", name, *own, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def m2(tmp_path_factory):
    return trained("m2", tmp_path_factory.mktemp("m2") / "run")


def call(run, *words):
    return evaluate.main([str(run), "--device", "cpu", *words])


def test_what_does_not_suit_is_refused_before_anything_is_estimated(m2, monkeypatch, capsys):
    monkeypatch.setattr(summary, "evaluate", lambda *args, **kwargs: pytest.fail("it was estimated first"))
    before = (m2 / "summary.json").read_bytes()
    assert call(m2, "--checks", "gaps", "aggregate", "calibration") == 2
    assert capsys.readouterr().err == (
        f"pyro_vae.evaluate: error: checks: expected gaps, calibration or predictive, which suit the m2 of {m2}, got "
        "aggregate (expected one latent site, got 2: y_unobserved, z); remove aggregate.\n"
    )
    assert call(m2, "--num-data", "1", "--checks", "predictive", "aggregate") == 2
    err = capsys.readouterr().err
    assert "expected gaps or calibration, which" in err
    assert err.endswith("; remove predictive and aggregate.\n")
    assert (m2 / "summary.json").read_bytes() == before


def discrete(x):
    """A discrete latent site that is not marked for enumeration."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)))
        pyro.sample(
            "x", dist.Bernoulli(0.2 + 0.6 * y[..., None, None, None].expand(*y.shape, 1, 4, 4)).to_event(3), obs=x
        )


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)))


def test_an_estimator_that_does_not_suit_is_refused():
    own = SimpleNamespace(model=discrete, guide=discrete_guide, eval=lambda: None)
    x = Inputs(torch.rand(6, 1, 4, 4).round())
    check_suitable(own, x, Estimation(), ("aggregate", "calibration"), "the own of here")
    with pytest.raises(ValueError, match="estimator: expected .* which suit the own of here") as refused:
        check_suitable(own, x, Estimation(estimator="annealed"), (), "the own of here")
    said = str(refused.value)
    assert said.startswith("estimator: expected importance, smoothed or prior, which suit")
    assert "got annealed (latent site 'y': expected a continuous distribution, got " in said
    assert said.endswith("got Bernoulli); choose one that suits.")


def test_the_guide_over_labels_is_calibrated_by_the_command(m2):
    assert call(m2, "--num-data", "30", "--num-samples", "5", "--checks", "calibration", "--quiet") == 0
    found = json.loads((m2 / "summary.json").read_text())["checks"]["calibration-30"]
    assert set(found["p_values"]) == {"y_unobserved", "z[0]", "z[1]", "log p(x, z)", "log q(z|x)"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_each_check_and_estimator_of_each_model_by_the_command(name, tmp_path, capsys):
    run, wrong = trained(name, tmp_path / "run"), REFUSED.get(name, {})
    for flag, known in (("--checks", CHECKS), ("--estimator", ESTIMATORS)):
        for asked in known:
            chains = flag == "--estimator" and ESTIMATORS[asked].kind == "chains"
            draws = ["--num-chains", "2", "--num-steps", "3"] if chains else []
            draws = draws or ["--num-samples", "10", "--refine-steps", "3"]
            code = call(run, "--num-data", "20", *draws, flag, asked)
            err = capsys.readouterr().err
            if name == "autoencoder":
                assert "expected a model with a log p(x) to evaluate, got autoencoder" in err
                continue
            assert code == (2 if asked in wrong else 0), err
            if code == 2:
                assert wrong[asked] in err
                assert err.count("\n") == 1
