from __future__ import annotations

import importlib

import pytest
import torch

from pyro_vae.testing import LAWS, BrokenBound, check_elbo_bounds
from tests.testing.coherent import COHERENT, ORACLE
from tests.testing.incoherent.drawn import ThreeUnits
from tests.testing.toy import LAW, Toy

for subject in ("structural", "batched", "weighted", "scored"):
    importlib.import_module(f"tests.testing.incoherent.{subject}")


#: The laws that are tests need the samples; the others are decided without chance.
SAMPLES = {"kl": 512, "posterior": 512, "gradients": 512}


def test_there_are_enough_of_them_and_some_for_each_law():
    assert len(LAW) >= 30
    assert set(LAW.values()) | {"exact"} == set(LAWS)


@pytest.mark.parametrize("kind", LAW, ids=lambda kind: kind.__name__)
def test_an_incoherent_fault_is_caught_by_the_law_meant_for_it_without_exact(kind):
    toy = kind()
    with pytest.raises(BrokenBound, match=f"law {LAW[kind]!r}") as caught:
        check_elbo_bounds(toy.model, toy.guide, *toy.data(), num_samples=SAMPLES.get(LAW[kind], 200))
    found = [f for f in caught.value.report.broken if f.law == LAW[kind]]
    for finding in found:
        sentence = str(finding)
        assert "\n" not in sentence
        assert finding.site in sentence
        assert finding.figures
        assert finding.causes
    # An error of the first run names no site of its own but the one in Pyro's sentence.
    assert any(word in str(found[0]) for word in ("site", "parameter", "plate", "latent", "log w", "dtype"))


@pytest.mark.parametrize("kind", [Toy, ThreeUnits])
def test_what_the_faults_are_planted_in_is_sound(kind):
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
