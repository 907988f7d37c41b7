from __future__ import annotations

import importlib
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from pyro_vae.testing import LAWS, BrokenBound, check_elbo_bounds
from tests.children import ROOT
from tests.testing.coherent import COHERENT, ORACLE
from tests.testing.incoherent.drawn import ThreeUnits
from tests.testing.toy import LAW, Toy

for subject in ("structural", "batched", "weighted", "scored"):
    importlib.import_module(f"tests.testing.incoherent.{subject}")


#: The laws that are tests need the samples; the others are decided without chance.
SAMPLES = {"kl": 512, "posterior": 512, "gradients": 512}


#: What else a fault breaks: weights that are wrong are so in every law that weighs with them.
NEIGHBOURS = {
    "VarianceForScale": {"gradients", "posterior"},
    "DrawsWider": {"gradients", "posterior"},
    "FactorWithoutConstraint": {"kl", "posterior"},
    "ObservesReconstruction": {"gradients"},
    "GuideDrawsWider": {"gradients"},
    "GuideDrawsShifted": {"gradients"},
    "GuideDrawsCorrelated": {"gradients"},
    **{kind.__name__: {"invariance"} for kind, law in LAW.items() if law == "independence"},
}


def test_there_are_enough_of_them_and_some_for_each_law():
    assert len(LAW) >= 30
    assert set(LAW.values()) | {"exact"} == set(LAWS)


#: Those that are caught as another one is, by the same comparison; make test-all plants them too.
ALIKE = {"NumpyDetour", "DetachedLayer", "DetachedPixel", "NoGradEncoder", "GuideDrawsWider", "PriorDrawsWider"}
FAULTS = [
    pytest.param(kind, law, marks=[pytest.mark.slow] * (kind.__name__ in ALIKE), id=kind.__name__)
    for kind, law in LAW.items()
]


@pytest.mark.thin(2, by="law")
@pytest.mark.parametrize(("kind", "law"), FAULTS)
def test_an_incoherent_fault_is_caught_by_the_law_meant_for_it_without_exact(kind, law):
    toy = kind()
    with pytest.raises(BrokenBound, match=f"law {law!r}") as caught:
        check_elbo_bounds(toy.model, toy.guide, *toy.data(), num_samples=SAMPLES.get(law, 200))
    found = [f for f in caught.value.report.broken if f.law == law]
    others = {f.law for f in caught.value.report.broken} - {law}
    assert others <= NEIGHBOURS.get(kind.__name__, set())
    for finding in found:
        sentence = str(finding)
        assert "\n" not in sentence
        assert finding.site in sentence
        assert finding.figures
        assert finding.causes
    # An error of the first run names no site of its own but the one in Pyro's sentence.
    assert any(word in str(found[0]) for word in ("site", "parameter", "plate", "latent", "log w", "dtype"))


@pytest.mark.parametrize("kind", [Toy, ThreeUnits])
def test_the_models_without_a_fault_are_sound(kind):
    toy = kind()
    report = check_elbo_bounds(toy.model, toy.guide, *toy.data())
    assert {law for law, state in report.laws.items() if state != "held"} == {"exact"}


#: Of the coherent ones, those that every run tests; make test-all tests them all.
QUICK = ("prior of scale 2", "decoder that ignores z", "bias left out", "pixels in another order, and a guide to match")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in COHERENT])
def test_a_coherent_fault_is_caught_with_exact_and_only_so(name):
    model, guide = COHERENT[name]
    x = ORACLE.draw(16)
    if name in ("prior of scale 2", "decoder that ignores z"):  # the law without exact= is the same for all
        assert check_elbo_bounds(model, guide, x).laws["exact"] == "not checked"
    with pytest.raises(BrokenBound) as caught:
        check_elbo_bounds(model, guide, x, exact=ORACLE.log_px, num_samples=256)
    assert {f.law for f in caught.value.report.broken} == {"exact"}


def test_exact_as_a_tensor_catches_where_the_weights_are_even():
    x = ORACLE.draw(16)
    model, guide = COHERENT["noise too large"]
    with pytest.raises(BrokenBound, match="both sides"):
        check_elbo_bounds(model, guide, x, exact=ORACLE.log_px(x))
    with pytest.raises(BrokenBound, match="law 'exact'"):
        check_elbo_bounds(ORACLE.model, ORACLE.guide(), x, exact=ORACLE.log_px(x) - 0.6)
    with pytest.raises(ValueError, match=r"shape \(16,\), got \(15,\)"):
        check_elbo_bounds(ORACLE.model, ORACLE.guide(), x, exact=torch.zeros(15))


def test_a_wrong_jacobian_names_its_distribution():
    toy = next(kind for kind in LAW if kind.__name__ == "JacobianLeftOut")()
    with pytest.raises(BrokenBound, match="TransformedDistribution has a total mass of"):
        check_elbo_bounds(toy.model, toy.guide, *toy.data(), num_samples=200)


@pytest.mark.parametrize("again", [["x"], ["again"]])
def test_data_that_are_scored_twice_pass_when_declared(again):
    toy = next(kind for kind in LAW if kind.__name__ == "ScoredTwice")()
    report = check_elbo_bounds(toy.model, toy.guide, *toy.data(), num_samples=200, conditional=again)
    assert report.laws["likelihood"] == "held"


def test_a_part_that_stands_still_passes_when_declared():
    toy = next(kind for kind in LAW if kind.__name__ == "DetachedMean")()
    report = check_elbo_bounds(toy.model, toy.guide, *toy.data(), num_samples=200, without_gradient=["encoder"])
    assert report.laws["gradients"] == "held"


class Modules(PyroModule):
    """A model in Pyro's own idiom, whose parameters are in the store under the names of its attributes."""

    def __init__(self):
        super().__init__()
        self.encoder = PyroModule[torch.nn.Linear](1, 1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.7), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x[:, None])[:, 0], 0.8))


def test_local_parameters_of_pyro_modules_are_reported():
    x = torch.linspace(-2, 2, 8)
    module = Modules()
    with pytest.raises(BrokenBound, match=r"law 'instances'.*module_local_params=True\)"):
        check_elbo_bounds(module.model, module.guide, x, num_samples=100)
    with pyro.settings.context(module_local_params=True):
        module = Modules()
        assert check_elbo_bounds(module.model, module.guide, x, num_samples=100).laws["instances"] == "held"


def test_the_docs_tell_the_number_of_faults():
    docs = " ".join((ROOT / "docs" / "testing.md").read_text(encoding="utf-8").split())
    assert f"plants {len(LAW) + len(COHERENT)} faults in sound models. The {len(LAW)} incoherent ones" in docs
    assert f"The {len(COHERENT)} coherent ones" in docs
    counts = Counter(LAW.values())
    for law in ("structure", "likelihood", "gradients", "posterior", "invariance", "instances"):
        assert f"{counts[law]} by `{law}`" in docs
    assert counts["independence"] == counts["kl"] == 7
